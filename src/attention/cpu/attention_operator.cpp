// See attention_operator.h.
#include "attention/cpu/attention_operator.h"

#include <algorithm>

namespace cqkv {

AttentionOperator::Sizes AttentionOperator::sizes(const CallContext& context) {
  const Shared shared(context, Carver(nullptr));
  Carver carver(nullptr);
  const TaskWorker worker(context, shared.visible, shared.rotation, carver);
  return {shared.bytes, carver.used()};
}

AttentionOperator::AttentionOperator(const CallContext& context, const Sizes& sizes,
                                     std::uint8_t* shared, std::uint8_t* threads)
    : context_(context),
      shared_(context, Carver(shared)),
      threads_(threads),
      thread_bytes_(sizes.thread) {
}

// The worker of a thread, in its memory. It keeps nothing from one task to the next.
TaskWorker AttentionOperator::worker(int thread) {
  Carver carver(threads_ + thread * thread_bytes_);
  return {context_, shared_.visible, shared_.rotation, carver};
}

// The tile that has a slice.
int AttentionOperator::tile_of(int slice) const {
  const std::vector<Tile>& tiles = context_.plan.tiles;
  const auto behind =
      std::upper_bound(tiles.begin(), tiles.end(), slice,
                       [](int value, const Tile& tile) { return value < tile.first_slice; });
  return static_cast<int>(behind - tiles.begin()) - 1;
}

void AttentionOperator::run_task(int index, int thread) {
  const Plan& plan = context_.plan;
  const int first_kv = index % plan.n_kv_groups * plan.kv_per_task;
  const int item = index / plan.n_kv_groups;  // a slice, or a tile
  const int tile = plan.split_ranges ? tile_of(item) : item;
  const AttentionTask task(context_, tile, first_kv, plan.kv_per_task);
  if (plan.split_ranges) {
    worker(thread).run_slice(task, item - task.tile->first_slice, shared_.partials);
  } else {
    worker(thread).run_tile(task);
  }
}

void AttentionOperator::run_merge(int index, int thread) {
  const int n_kv_heads = context_.call.n_kv_heads;
  const AttentionTask task(context_, index / n_kv_heads, index % n_kv_heads, 1);
  worker(thread).merge_slices(task, shared_.partials);
}

void AttentionOperator::run(ParallelFor& parallel) {
  const Plan& plan = context_.plan;
  shared_.rotation.pack();
  if (plan.n_tiles() == 1) {
    shared_.visible.scan(0);
  } else {
    parallel.run(plan.n_tiles(), [this](int tile, int) { shared_.visible.scan(tile); });
  }
  parallel.run(plan.n_tasks(), [this](int task, int thread) { run_task(task, thread); });
  if (plan.split_ranges) {
    parallel.run(plan.n_tiles() * context_.call.n_kv_heads,
                 [this](int task, int thread) { run_merge(task, thread); });
  }
}

}  // namespace cqkv
