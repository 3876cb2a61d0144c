// A step over one block in floats: plain rows, codes with exact rows beside them, and codes for
// which there are no byte tables. Steps over codes with byte tables are in byte_step.h, what a step
// adds to sums over keys in key_sum_step.h.
#pragma once

#include <cstddef>

#include "attention/cpu/memory.h"
#include "attention/cpu/task.h"

namespace cqkv {

// The step of one thread, with the decoded keys and values of one KV head of a block.
class FloatStep {
 public:
  FloatStep(const CallContext& context, Carver& carver);

  // Before the first step of a task.
  void begin_task();

  // The angles of a block whose keys are to be rotated, for the steps of all KV heads.
  void load_angles(const ViewBlock& block);

  // Scores of the rows with one block; `exact`: with the residuals of its exact rows.
  void score(const HeadRows& head, const ViewBlock& block, bool exact, StepScores& step);

  // From the scores: softmax and values of one block. Leaves the probabilities in step.scores.
  // `mask` is [n_queries, 64].
  void add_values(const HeadRows& head, const ViewBlock& block, bool exact, const float* mask,
                  StepScores& step);

 private:
  void load_keys(int kv_head, const ViewBlock& block);
  void load_exact_keys(int kv_head, const ViewBlock& block);
  void order_keys(int kv_head);
  void rotate_keys();
  void load_values(int kv_head, const ViewBlock& block, bool exact);

  const CallContext& context_;
  WorkArray<float> keys_;     // [head_dim_k, 64]
  WorkArray<float> values_;   // [64, value_stride]
  WorkArray<float> rows_;     // [64, head_dim_k], keys before transposition or in another order
  WorkArray<float> cosines_;  // [head_dim_k / 2, 64]
  WorkArray<float> sines_;
};

}  // namespace cqkv
