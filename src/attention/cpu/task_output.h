// From the complete states of a task to its outputs: what steps leave out of values, products with
// matrices, the division by the sums. What steps do is in task_worker.h.
#pragma once

#include <cstddef>

#include "attention/cpu/task.h"

namespace cqkv {

class TaskOutput {
 public:
  // Works in the memory of a step and of a state that are not in use.
  TaskOutput(const CallContext& context, const AttentionTask& task, StepScores& step,
             TaskState& spare)
      : context_(context), task_(task), step_(step), spare_(spare) {}

  // Writes the outputs of the task, whose states are complete; they are used up.
  void write(TaskState& total);

 private:
  void turn_values(int kv_head, SoftmaxState state);
  void add_key_sums(int kv_head, SoftmaxState state);
  void add_product(const float* rows, int n_channels, const float* matrix, std::size_t stride,
                   float* out);
  void write_head(int kv_head, const SoftmaxState& state);

  const CallContext& context_;
  const AttentionTask& task_;
  StepScores& step_;
  TaskState& spare_;
};

}  // namespace cqkv
