// What a person is told of a context, in one line of the host's log at its usual verbosity: what of
// the cache is coded and what it takes, or what is not coded and which flag is missing. Refusals
// are refusal.h.
//
// The device is not told of contexts. It sees a backend made for one, then caches allocated, then
// graphs planned; the first planned graph shows where the cache of each layer lies.
#pragma once

#include <string>

#include <ggml.h>

namespace cqkv::device {

/// A backend was made on this thread: a new context begins.
void begin_context();

/// What was said of a context.
enum class Coded { kNotSaid = 0, kAll = 1, kSome = 2, kNone = 3 };

struct Report {
  Coded coded = Coded::kNotSaid;
  std::string line;
};

/// What was said of the newest context of this thread, once: kNotSaid from then on.
Report take_report();

/// A node of a planned graph, in the order of the graph. Reports once a context, with the last
/// layer that the codebook codes; never in a dry run.
void watch_planned_node(const ggml_tensor* node);

/// A node that is computed on a cache that is not coded. If its buffer would have coded it, it was
/// never placed there: llama.cpp's RPC server writes into buffers whose tensors it does not
/// announce. Said once in the process.
void watch_plain_node(const ggml_tensor* node);

}  // namespace cqkv::device
