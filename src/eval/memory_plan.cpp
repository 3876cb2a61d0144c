// See memory_plan.h.
#include "eval/memory_plan.h"

#include <algorithm>

namespace cqkv::eval {
namespace {

constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30U;
constexpr std::uint64_t kRoundBytes = std::uint64_t{512} << 20U;

}  // namespace

MemoryPlan plan_memory(const EvaluationSize& size) {
  const std::uint64_t context = 2 * size.step_logit_bytes + size.context_bytes;
  const auto n_contexts = static_cast<std::uint64_t>(size.n_variants) + 1;
  const std::uint64_t n_fitting = kRoundBytes / std::max<std::uint64_t>(size.chunk_logit_bytes, 1);
  const std::uint64_t n_chunks =
      std::clamp<std::uint64_t>(n_fitting, 1, static_cast<std::uint64_t>(size.n_chunks));
  const std::uint64_t together = n_contexts * context;
  const std::uint64_t in_turns = context + n_chunks * size.chunk_logit_bytes;
  if (together <= std::max(kPlenty, in_turns)) {
    return {.keep_contexts = true, .steps_per_round = 1, .n_bytes = together};
  }
  return {.keep_contexts = false,
          .steps_per_round = static_cast<int>(n_chunks) * size.steps_per_chunk,
          .n_bytes = in_turns};
}

}  // namespace cqkv::eval
