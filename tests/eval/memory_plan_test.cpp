// Which of contexts and logits are in memory at once: a plan that takes too much ends in the
// machine's last memory, one that takes too little makes contexts again and again.
#include "eval/memory_plan.h"

#include <gtest/gtest.h>

namespace cqkv::eval {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;

// SmolLM2 with chunks of 512 tokens, the second halves scored.
EvaluationSize small_model(int n_variants, int n_chunks = 16) {
  return {.n_variants = n_variants,
          .n_chunks = n_chunks,
          .steps_per_chunk = 1,
          .step_logit_bytes = 48 * kMiB,
          .chunk_logit_bytes = 48 * kMiB,
          .context_bytes = 20 * kMiB};
}

TEST(MemoryPlan, FewContextsStay) {
  const MemoryPlan plan = plan_memory(small_model(4));
  EXPECT_TRUE(plan.keep_contexts);
  EXPECT_EQ(plan.steps_per_round, 1);
  EXPECT_EQ(plan.n_bytes, 5 * 116 * kMiB);
}

TEST(MemoryPlan, ManyTakeTurnsInRoundsOfChunks) {
  const MemoryPlan plan = plan_memory(small_model(33));
  EXPECT_FALSE(plan.keep_contexts);
  EXPECT_EQ(plan.steps_per_round, 10);  // 480 of 512 MiB
  EXPECT_EQ(plan.n_bytes, (116 + 480) * kMiB);
  EXPECT_EQ(plan_memory(small_model(330)).n_bytes, plan.n_bytes);
  EXPECT_EQ(plan_memory(small_model(33, 3)).steps_per_round, 3);
}

TEST(MemoryPlan, RoundsAreWholeChunks) {
  EvaluationSize size = small_model(33);
  size.steps_per_chunk = 4;
  EXPECT_EQ(plan_memory(size).steps_per_round, 40);
  size.chunk_logit_bytes = 600 * kMiB;
  EXPECT_EQ(plan_memory(size).steps_per_round, 4);
  EXPECT_EQ(plan_memory(size).n_bytes, (116 + 600) * kMiB);
}

// A chunk of 32768 tokens of a model with a large vocabulary has 10 GiB of logits.
TEST(MemoryPlan, LongChunksAreComparedStepByStep) {
  EvaluationSize size = small_model(2);
  size.steps_per_chunk = 64;
  size.step_logit_bytes = 300 * kMiB;
  size.chunk_logit_bytes = 10240 * kMiB;
  const MemoryPlan plan = plan_memory(size);
  EXPECT_TRUE(plan.keep_contexts);
  EXPECT_EQ(plan.steps_per_round, 1);
  EXPECT_EQ(plan.n_bytes, 3 * 620 * kMiB);
  size.n_variants = 33;
  EXPECT_FALSE(plan_memory(size).keep_contexts);
}

TEST(MemoryPlan, NothingToCompareOrToScore) {
  EXPECT_TRUE(plan_memory(small_model(0)).keep_contexts);
  EvaluationSize size = small_model(100);
  size.step_logit_bytes = 0;
  size.chunk_logit_bytes = 0;
  EXPECT_FALSE(plan_memory(size).keep_contexts);
  EXPECT_EQ(plan_memory(size).steps_per_round, 16);
}

}  // namespace
}  // namespace cqkv::eval
