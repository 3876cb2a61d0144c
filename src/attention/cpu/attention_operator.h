// One attention call: its tasks, run in parallel, and the memory that they share. What a task does
// is in task_worker.h, how a call is cut into tasks in attention/plan/plan.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/byte_step.h"
#include "attention/cpu/call_context.h"
#include "attention/cpu/softmax_state.h"
#include "attention/cpu/task.h"
#include "attention/cpu/task_worker.h"
#include "attention/cpu/visible_blocks.h"
#include "core/parallel.h"

namespace cqkv {

// A task owns a tile of queries and some KV heads; with few queries and many threads it owns one
// range besides, and a second loop merges the ranges' states.
//
// Three things are shared. VisibleBlocks and KeyRotation are written before the first task begins
// and then read; PartialStates are written by the tasks, each its own, and read by the second loop.
class AttentionOperator {
 public:
  // Bytes for what all threads share, and for each thread.
  struct Sizes {
    std::size_t shared;
    std::size_t thread;
  };

  static Sizes sizes(const CallContext& context);

  // In memory of these sizes, aligned to kAlignment; `threads` has a piece for each.
  AttentionOperator(const CallContext& context, const Sizes& sizes, std::uint8_t* shared,
                    std::uint8_t* threads);

  void run(ParallelFor& parallel);

 private:
  // The parts that all threads share.
  struct Shared {
    Shared(const CallContext& context, Carver carver)
        : visible(context, carver),
          rotation(context, carver),
          partials(context.plan, context.call.n_kv_heads, carver),
          bytes(carver.used()) {}

    VisibleBlocks visible;
    KeyRotation rotation;
    PartialStates partials;
    std::size_t bytes;
  };

  void run_task(int index, int thread);
  void run_merge(int index, int thread);
  TaskWorker worker(int thread);
  int tile_of(int slice) const;

  const CallContext& context_;
  Shared shared_;
  std::uint8_t* threads_;
  std::size_t thread_bytes_;
};

}  // namespace cqkv
