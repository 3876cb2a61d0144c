// What the parts of a task hand to each other: its queries and KV heads, the blocks that it takes
// together, the rows of one KV head, and their scores in a step. Who computes what from them is in
// task_worker.h.
#pragma once

#include <algorithm>
#include <cstddef>

#include "attention/cpu/call_context.h"
#include "attention/cpu/memory.h"
#include "attention/cpu/softmax_state.h"
#include "kernels/coded_blocks.h"

namespace cqkv {

// A tile of queries and some KV heads.
struct AttentionTask {
  AttentionTask(const CallContext& context, int tile_index, int first_kv_head, int most_kv_heads)
      : tile(&context.plan.tiles[static_cast<std::size_t>(tile_index)]),
        first_query(tile->first_query),
        n_queries(tile->n_queries),
        n_rows(n_queries * context.plan.heads_per_kv),
        first_kv(first_kv_head),
        n_kv(std::min(most_kv_heads, context.call.n_kv_heads - first_kv_head)) {}

  const Tile* tile;
  int first_query;
  int n_queries;
  int n_rows;  // of a KV head: n_queries times heads per KV head
  int first_kv;
  int n_kv;
};

// Blocks that a task works on together: one, or several that its queries see coded only.
struct BlockChunk {
  int blocks[kernels::kMaxChunk];
  int n = 0;
  unsigned seen = 0;  // VisibleBlocks
};

// The rows of one KV head of a task, and their state of the current range, which a step changes.
struct HeadRows {
  int index;  // of the KV head in the task
  int kv_head;
  int n_rows;
  const float* queries;  // [n_rows, head_dim_k]
  SoftmaxState state;
};

// The rows of one KV head in a step. The half of a step that reads keys leaves the scores, the half
// that reads values turns them into weights; either half may be in floats or in bytes.
struct StepScores {
  StepScores(const Plan& plan, Carver& carver)
      : scores(carver.take<float>(chunk_rows(plan) * kBlockCells)),
        rescale(carver.take<float>(chunk_rows(plan))) {}

  // Caps the scores of n_rows; returns by what they are still to be multiplied.
  float cap(const CallContext& context, int n_rows) {
    const AttentionCall& call = context.call;
    if (call.softcap <= 0.0F) {
      return call.scale;
    }
    context.kernel.cap_scores(scores.data(), static_cast<std::size_t>(n_rows) * kBlockCells,
                              call.scale / call.softcap, call.softcap);
    return 1.0F;
  }

  WorkArray<float> scores;   // [chunk_blocks, tile_rows, 64]
  WorkArray<float> rescale;  // [chunk_blocks, tile_rows]: of what the state had before

 private:
  static std::size_t chunk_rows(const Plan& plan) {
    return static_cast<std::size_t>(plan.chunk_blocks) * plan.tile_rows;
  }
};

}  // namespace cqkv
