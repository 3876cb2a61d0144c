// A step over codes with byte tables, by the integer kernels: scores against 8-bit centroids
// rotated in 16 bits, with queries in 16 bits (byte_queries.h); probabilities and values in 8. The
// numerics and their bounds are in docs/kernels.md, steps in floats in float_step.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/block_masks.h"
#include "attention/cpu/byte_queries.h"
#include "attention/cpu/memory.h"
#include "attention/cpu/task.h"
#include "kernels/coded_blocks.h"

namespace cqkv {

// The rotation of keys inside a block, the same for all blocks: packed before any task begins.
// Pairs that turn so little within a block that bytes could hardly tell are not rotated.
class KeyRotation {
 public:
  KeyRotation(const CallContext& context, Carver& carver)
      : context_(context), angles_(carver.take<std::int16_t>(context.plan.angle_words())) {}

  void pack();

  const std::int16_t* angles() const { return angles_.data(); }

 private:
  const CallContext& context_;
  WorkArray<std::int16_t> angles_;  // RopeTable::centred, packed
};

// The step of one thread. It has memory for the side or sides with byte tables only.
class ByteStep {
 public:
  ByteStep(const CallContext& context, const KeyRotation& rotation, Carver& carver);

  // `queries` are those of the task, [KV head, row, head_dim_k].
  void begin_task(const AttentionTask& task, const float* queries) {
    queries_.begin_task(task, queries);
  }

  // What the steps of all KV heads need of block number `index` of a chunk.
  void begin_block(const ViewBlock& block, int index) { queries_.load_angles(block, index); }

  // Scores of the rows with all blocks of a chunk.
  void score(const HeadRows& head, const BlockChunk& chunk, StepScores& step);

  // From the scores: softmax and values of all blocks of a chunk. Leaves the probabilities.
  void add_values(const HeadRows& head, const BlockChunk& chunk, const BlockMasks& masks,
                  StepScores& step);

  // Of the last step: [block, row, 64] in 7 bits, and what they are multiplied by, [block, row].
  const std::uint8_t* probabilities() const { return probabilities_.data(); }

  const float* weights() const { return weights_.data(); }

 private:
  kernels::ScoreCodes score_call(const HeadRows& head, const BlockChunk& chunk, StepScores& step);
  void merge_blocks(int n_blocks, kernels::ScoreCodes& score);
  void softmax(const HeadRows& head, const BlockChunk& chunk, const BlockMasks& masks,
               StepScores& step);
  void accumulate(const HeadRows& head, const BlockChunk& chunk, const StepScores& step);

  const CallContext& context_;
  const KeyRotation& rotation_;
  ByteQueries queries_;
  WorkArray<float> chunk_factors_;         // [chunk_blocks, tile_rows]: the same for every block
  WorkArray<float> weights_;               // [chunk_blocks, tile_rows]
  WorkArray<std::uint8_t> probabilities_;  // [chunk_blocks, tile_rows, 64]
  WorkArray<std::uint8_t> unpacked_;       // [chunk_blocks, groups, 64] of 8 or 16 bits
  WorkArray<std::uint8_t> kernel_scratch_;
};

}  // namespace cqkv
