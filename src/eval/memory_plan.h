// How much of an evaluation is in memory at once: contexts of libllama, each with logits of its
// own, and the base's logits that variants are compared with. Arithmetic alone; what is planned
// here is done in perplexity.cpp.
#pragma once

#include <cstdint>

namespace cqkv::eval {

/// The work: chunks of a text, each decoded in steps by the base and by every variant.
struct EvaluationSize {
  int n_variants = 0;
  int n_chunks = 0;
  int steps_per_chunk = 0;
  std::uint64_t step_logit_bytes = 0;   ///< Of the scored tokens of a step, at most.
  std::uint64_t chunk_logit_bytes = 0;  ///< Of those of a chunk.
  std::uint64_t context_bytes = 0;      ///< Of a context beside its logits: its cache.
};

/// Either all contexts stay, and every step is decoded by all of them in turn; or the base's logits
/// of a round of chunks are kept, and only one context is there at a time.
struct MemoryPlan {
  bool keep_contexts = true;
  int steps_per_round = 1;    ///< Whole chunks, unless contexts stay.
  std::uint64_t n_bytes = 0;  ///< About what contexts and kept logits take, the model not counted.
};

/// Keeps all contexts where that takes no more than 1 GiB, since making one takes time, or where a
/// chunk's logits would take more. A context holds a step's logits twice: as the last tensor of its
/// graph and as its output. Rounds have up to 512 MiB of logits, or one chunk.
MemoryPlan plan_memory(const EvaluationSize& size);

}  // namespace cqkv::eval
