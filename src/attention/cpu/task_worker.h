// What one thread does with a task: it goes over the blocks of ranges, takes a step of the softmax
// states over each, and merges ranges in order. The arithmetic of steps is in float_step.h,
// byte_step.h and key_sum_step.h, that of outputs in task_output.h; which tasks there are is not
// here.
//
//   for every range of kRangePositions, ascending       (a partial softmax state)
//     for every block of 64 positions, ascending          (one step of the state for
//       the cells seen coded, one for those seen exactly)
//   states of the ranges are merged in ascending order
#pragma once

#include "attention/cpu/block_masks.h"
#include "attention/cpu/byte_step.h"
#include "attention/cpu/float_step.h"
#include "attention/cpu/key_sum_step.h"
#include "attention/cpu/memory.h"
#include "attention/cpu/softmax_state.h"
#include "attention/cpu/task.h"
#include "attention/cpu/visible_blocks.h"

namespace cqkv {

// All the memory of a thread, and who works in it. What threads share is read.
class TaskWorker {
 public:
  TaskWorker(const CallContext& context, const VisibleBlocks& visible, const KeyRotation& rotation,
             Carver& carver);

  // Computes the outputs of a task from all ranges of its tile.
  void run_tile(const AttentionTask& task);

  // Leaves the states of one range of the tile in `partials`.
  void run_slice(const AttentionTask& task, int range, PartialStates& partials);

  // Computes the outputs of a task, of one KV head, from the states of its ranges.
  void merge_slices(const AttentionTask& task, PartialStates& partials);

 private:
  void begin(const AttentionTask& task);
  void gather_queries(const AttentionTask& task);
  HeadRows head_of(const AttentionTask& task, int index);
  BlockChunk chunk_at(const AttentionTask& task, int& block, int last) const;
  void begin_block(const AttentionTask& task, const BlockChunk& chunk, int index);
  void coded_step(const AttentionTask& task, int index, const BlockChunk& chunk);
  void exact_step(const AttentionTask& task, int index, const ViewBlock& block);
  void run_chunk(const AttentionTask& task, const BlockChunk& chunk);
  void run_range(const AttentionTask& task, int range);
  void merge(const SoftmaxState& from, int n_rows);
  void write(const AttentionTask& task);

  const CallContext& context_;
  const VisibleBlocks& visible_;
  WorkArray<float> queries_;  // [kv_per_task, tile_rows, head_dim_k]
  TaskState total_;           // of the ranges merged so far
  TaskState range_;           // of the current range
  StepScores step_;
  BlockMasks masks_;
  FloatStep floats_;
  ByteStep bytes_;
  KeySumStep key_sums_;
};

}  // namespace cqkv
