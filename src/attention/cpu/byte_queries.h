// The queries of a task as the integer kernels want them: pairs of channels in 16 bits, rotated
// back to the centre of each block. What is multiplied with them is in byte_step.h; the numerics
// and their bounds are in docs/kernels.md.
//
// s = <q, R(p0 + t) k> with p0 the first position of a block is taken as
// <R(-(p0 + 32)) q, R(t - 32) k>: the rotation of the keys is then the same for all blocks,
// and what depends on p0 is one rotation of the query a block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/memory.h"
#include "attention/cpu/task.h"

namespace cqkv {

// The queries of one thread. Without byte keys it has no memory and does nothing.
class ByteQueries {
 public:
  ByteQueries(const CallContext& context, Carver& carver);

  // Scales the queries [KV head, row, head_dim_k] of a task.
  void begin_task(const AttentionTask& task, const float* queries);

  // The angles that queries are rotated back by for block number `index` of a chunk.
  void load_angles(const ViewBlock& block, int index);

  // Rotates the rows of a KV head for the first n_blocks of a chunk.
  void rotate(const HeadRows& head, int n_blocks);

  // What `rotate` left for block number `index`: n_rows of stride().
  const std::uint32_t* rotated(int index, int n_rows) const {
    return rotated_.from(static_cast<std::size_t>(index) * n_rows * stride());
  }

  // Words of a rotated row.
  std::size_t stride() const { return static_cast<std::size_t>(context_.plan.padded_pairs); }

  // [n_rows] for a KV head: what undoes the scale.
  const float* factors(const HeadRows& head) const {
    return factors_.from(static_cast<std::size_t>(head.index) * head.n_rows);
  }

 private:
  const float* place_angles(int kv_head, const float* angles);

  const CallContext& context_;
  WorkArray<float> pairs_;            // [kv_per_task, tile_rows, 2, padded_pairs]: scaled queries
  WorkArray<float> factors_;          // [kv_per_task, tile_rows]
  WorkArray<std::uint32_t> rotated_;  // [chunk_blocks, tile_rows, padded_pairs]
  WorkArray<float> angles_;           // [chunk_blocks, 2, padded_pairs]
  WorkArray<float> placed_angles_;    // [2, padded_pairs], of one KV head and block
};

}  // namespace cqkv
