// The attention operator against the double reference at every level.
#include "attention/attention.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "attention/attention_case.h"
#include "attention/reference.h"

namespace cqkv {
namespace {

// Scores are sums of head_dim products of size about 1 with relative error eps each,
// plus 4 eps a rotated pair: |ds| <= c head_dim eps |q| |k| scale, here about 1e-5. An
// error ds of all scores changes the output by at most 2 ds max |v|; with max |v|
// about 4 and sums of n terms that round, 1e-4 is safe and far below any mistake.
constexpr double kTolerance = 1e-4;

void expect_matches_reference(const AttentionShape& shape, int n_threads) {
  AttentionCase test(shape, 1);
  const std::vector<double> want = reference_attend(test.call());
  ThreadParallelFor parallel(n_threads);
  AttentionWorkspace workspace;
  for (const std::string& isa : supported_isas()) {
    ASSERT_TRUE(force_isa(isa).ok());
    const Status status = attend(test.call(), parallel, workspace);
    ASSERT_TRUE(status.ok()) << status.message();
    for (std::size_t i = 0; i < want.size(); i++) {
      ASSERT_NEAR(test.out()[i], want[i], kTolerance) << isa << " " << shape.name() << " at " << i;
    }
  }
}

TEST(Attention, MatchesReferenceForCodes) {
  AttentionShape shape;
  shape.rope = plain_rope(64, RopeMode::kNeox);
  shape.heads_per_kv = 3;
  for (const std::size_t n_cells : {0, 1, 2, 31, 64, 100, 700, 1600}) {
    shape.n_cells = n_cells;
    expect_matches_reference(shape, 1);
    expect_matches_reference(shape, 3);
  }
}

TEST(Attention, MatchesReferenceForManyQueries) {
  AttentionShape shape;
  shape.rope = plain_rope(64, RopeMode::kNormal);
  shape.heads_per_kv = 3;
  shape.n_queries = 100;
  shape.n_cells = 700;
  shape.causal = true;
  expect_matches_reference(shape, 2);
}

TEST(Attention, MatchesReferenceForPlainRows) {
  AttentionShape shape;
  shape.k = shape.v = CodecSpec{};
  shape.head_dim_k = 80;
  shape.head_dim_v = 24;
  shape.n_cells = 130;
  expect_matches_reference(shape, 2);
}

}  // namespace
}  // namespace cqkv
