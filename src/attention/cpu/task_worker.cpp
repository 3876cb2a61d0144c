// See task_worker.h.
#include "attention/cpu/task_worker.h"

#include <algorithm>
#include <cstring>

#include "attention/cpu/task_output.h"

namespace cqkv {
namespace {

// Of all KV heads of a task.
std::size_t task_rows(const Plan& plan) {
  return static_cast<std::size_t>(plan.kv_per_task) * plan.tile_rows;
}

}  // namespace

TaskWorker::TaskWorker(const CallContext& context, const VisibleBlocks& visible,
                       const KeyRotation& rotation, Carver& carver)
    : context_(context),
      visible_(visible),
      queries_(carver.take<float>(task_rows(context.plan) * context.call.head_dim_k)),
      total_(task_rows(context.plan), context.plan.channels, carver),
      range_(task_rows(context.plan), context.plan.channels, carver),
      step_(context.plan, carver),
      masks_(context, carver),
      floats_(context, carver),
      bytes_(context, rotation, carver),
      key_sums_(context, carver) {
}

// ---------------------------------------------------------------- tasks

void TaskWorker::run_tile(const AttentionTask& task) {
  begin(task);
  const int n_rows = task.n_kv * task.n_rows;
  total_.clear(n_rows);
  for (int range = 0; range < task.tile->view->n_ranges; range++) {
    if (visible_.sees_range(*task.tile, range)) {
      run_range(task, range);
      merge(range_.all(), n_rows);
    }
  }
  write(task);
}

void TaskWorker::run_slice(const AttentionTask& task, int range, PartialStates& partials) {
  begin(task);
  if (!visible_.sees_range(*task.tile, range)) {
    return;
  }
  run_range(task, range);
  for (int index = 0; index < task.n_kv; index++) {
    const SoftmaxState from = range_.head(index, task.n_rows);
    const SoftmaxState to = partials.at(task.tile->first_slice + range, task.first_kv + index);
    std::copy_n(from.maxima, task.n_rows, to.maxima);
    std::copy_n(from.sums, task.n_rows, to.sums);
    std::copy_n(from.out, static_cast<std::size_t>(task.n_rows) * context_.plan.channels, to.out);
  }
}

// The same steps as those of run_tile.
void TaskWorker::merge_slices(const AttentionTask& task, PartialStates& partials) {
  total_.clear(task.n_rows);
  for (int range = 0; range < task.tile->view->n_ranges; range++) {
    if (visible_.sees_range(*task.tile, range)) {
      merge(partials.at(task.tile->first_slice + range, task.first_kv), task.n_rows);
    }
  }
  write(task);
}

void TaskWorker::begin(const AttentionTask& task) {
  if (!context_.plan.byte_values || context_.call.exact != nullptr) {  // steps in floats
    floats_.begin_task();
    key_sums_.begin_task();
  }
  gather_queries(task);
  bytes_.begin_task(task, queries_.data());
}

void TaskWorker::gather_queries(const AttentionTask& task) {
  const AttentionCall& call = context_.call;
  const int heads_per_kv = context_.plan.heads_per_kv;
  const std::size_t row_bytes = static_cast<std::size_t>(call.head_dim_k) * sizeof(float);
  float* to = queries_.data();
  for (int kv = 0; kv < task.n_kv; kv++) {
    for (int i = 0; i < task.n_queries; i++) {
      for (int h = 0; h < heads_per_kv; h++) {
        const int head = (task.first_kv + kv) * heads_per_kv + h;
        std::memcpy(
            to,
            call.queries + head * call.query_head_bytes + (task.first_query + i) * call.query_bytes,
            row_bytes);
        to += call.head_dim_k;
      }
    }
  }
}

void TaskWorker::merge(const SoftmaxState& from, int n_rows) {
  const SoftmaxState to = total_.all();
  context_.kernel.merge_rows(from.maxima, from.sums, from.out, n_rows, context_.plan.channels,
                             to.maxima, to.sums, to.out);
}

void TaskWorker::write(const AttentionTask& task) {
  TaskOutput(context_, task, step_, range_).write(total_);
}

// ---------------------------------------------------------------- blocks

// The next blocks that the tile sees, from `block` on, which moves past them: one, or as many as
// may be taken together.
BlockChunk TaskWorker::chunk_at(const AttentionTask& task, int& block, int last) const {
  BlockChunk chunk;
  for (; block < last && chunk.n < context_.plan.chunk_blocks; block++) {
    const unsigned seen = visible_.sees(*task.tile, block);
    if (seen == 0) {
      continue;
    }
    if (chunk.n > 0 && seen != kSeesCoded) {
      break;
    }
    chunk.blocks[chunk.n++] = block;
    chunk.seen = seen;
    if (seen != kSeesCoded) {
      block++;
      break;
    }
  }
  return chunk;
}

// Leaves the states of one range of the tile in range_.
void TaskWorker::run_range(const AttentionTask& task, int range) {
  const int last = context_.views.range_end(task.tile->view->first_range + range);
  range_.clear(task.n_kv * task.n_rows);
  int block = context_.views.range_begin(task.tile->view->first_range + range);
  while (block < last) {
    run_chunk(task, chunk_at(task, block, last));
  }
}

// A step of the states of all KV heads of the task over the cells of a chunk that are seen coded,
// and one over those that are seen exactly.
void TaskWorker::run_chunk(const AttentionTask& task, const BlockChunk& chunk) {
  for (int i = 0; i < chunk.n; i++) {
    begin_block(task, chunk, i);
  }
  if ((chunk.seen & kSeesCoded) != 0) {
    for (int kv = 0; kv < task.n_kv; kv++) {
      coded_step(task, kv, chunk);
    }
    if (context_.plan.byte_sums()) {
      key_sums_.add_kept(task, chunk, range_.all());
    }
  }
  if ((chunk.seen & kSeesExact) != 0) {
    for (int kv = 0; kv < task.n_kv; kv++) {
      exact_step(task, kv, context_.views.block(chunk.blocks[0]));
    }
  }
}

// What the KV heads of a task share of block number `index` of a chunk: masks and angles.
void TaskWorker::begin_block(const AttentionTask& task, const BlockChunk& chunk, int index) {
  const ViewBlock& block = context_.views.block(chunk.blocks[index]);
  const bool exact = (chunk.seen & kSeesExact) != 0;
  masks_.load(task, block, index, exact);
  const bool rotated = context_.call.rope != nullptr && context_.call.k.codec != nullptr;
  if (rotated && (!context_.plan.byte_keys || exact)) {
    floats_.load_angles(block);
  }
  bytes_.begin_block(block, index);
}

// ---------------------------------------------------------------- steps

// The rows of KV head number `index` of a task, with their states of the current range.
HeadRows TaskWorker::head_of(const AttentionTask& task, int index) {
  const std::size_t first_row = static_cast<std::size_t>(index) * task.n_rows;
  return {index, task.first_kv + index, task.n_rows,
          queries_.from(first_row * context_.call.head_dim_k), range_.head(index, task.n_rows)};
}

// One step of the states of a KV head with the cells of a chunk that are seen coded. Without bytes
// on both sides a chunk is one block.
void TaskWorker::coded_step(const AttentionTask& task, int index, const BlockChunk& chunk) {
  const HeadRows head = head_of(task, index);
  const ViewBlock& block = context_.views.block(chunk.blocks[0]);
  const Plan& plan = context_.plan;
  if (plan.byte_keys) {
    bytes_.score(head, chunk, step_);
  } else {
    floats_.score(head, block, false, step_);
  }
  if (plan.byte_values) {
    bytes_.add_values(head, chunk, masks_, step_);
  } else {
    floats_.add_values(head, block, false, masks_.coded(0), step_);
  }
  if (plan.byte_sums()) {
    key_sums_.keep(task, head, chunk, bytes_, step_);
  } else if (plan.sum_channels > 0) {
    key_sums_.add(head, block, step_);
  }
}

// One step of the states of a KV head with the cells of a block that are seen exactly.
void TaskWorker::exact_step(const AttentionTask& task, int index, const ViewBlock& block) {
  const HeadRows head = head_of(task, index);
  floats_.score(head, block, true, step_);
  floats_.add_values(head, block, true, masks_.exact(), step_);
  if (context_.plan.sum_channels > 0) {
    rescale_key_sums(context_.plan, head, step_);
  }
}

}  // namespace cqkv
