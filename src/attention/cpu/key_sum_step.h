// Sums over decoded keys beside those over values (codec/key_sums.h): what a step adds to them, in
// bytes and in floats. In every row of a softmax state they follow the channels of the values. The
// product with the matrices is in task_output.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/byte_step.h"
#include "attention/cpu/memory.h"
#include "attention/cpu/task.h"

namespace cqkv {

// The sums of one thread. Of a call with sums; of another it has no memory.
class KeySumStep {
 public:
  KeySumStep(const CallContext& context, Carver& carver);

  // Before the first step of a task.
  void begin_task();

  // In bytes, after the step of each KV head of the task: keeps its probabilities beside those of
  // the other KV heads.
  void keep(const AttentionTask& task, const HeadRows& head, const BlockChunk& chunk,
            const ByteStep& bytes, const StepScores& step);

  // Then, of all of them: keys are decoded once for the rows of all KV heads.
  void add_kept(const AttentionTask& task, const BlockChunk& chunk, SoftmaxState state);

  // In floats, after the step of a KV head, whose probabilities are in step.scores.
  void add(const HeadRows& head, const ViewBlock& block, const StepScores& step);

 private:
  const std::uint8_t* chosen_codes(const ViewBlock& block, std::uint8_t* to);

  const CallContext& context_;
  WorkArray<float> rows_;                  // [64, sum_stride], decoded keys
  WorkArray<float> weights_;               // [chunk_blocks, KV head, row]
  WorkArray<float> rescale_;               // [chunk_blocks, KV head, row]
  WorkArray<std::uint8_t> probabilities_;  // [chunk_blocks, KV head, row, 64]
  WorkArray<std::uint8_t> codes_;          // [chunk_blocks, groups to be summed, 64]
  WorkArray<std::uint8_t> unpacked_;       // [groups, 64], of one KV head
};

// What a step over cells that are seen exactly does to the sums: it adds no keys.
void rescale_key_sums(const Plan& plan, const HeadRows& head, const StepScores& step);

}  // namespace cqkv
