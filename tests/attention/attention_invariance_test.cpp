// What attend promises beyond its formula: bit-equal results however a call is cut,
// whatever cells that nobody sees hold, whatever the layout of queries and output; and
// that failures write nothing. All comparisons are exact unless said.
#include <cstring>

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "attention/attention.h"
#include "attention/attention_case.h"
#include "core/half.h"

namespace cqkv {
namespace {

// Parameters: the level, and whether coded sides have byte tables.
class AttentionInvariance : public ::testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_isa(std::get<0>(GetParam())).ok()); }

  void TearDown() override { ASSERT_TRUE(force_isa(supported_isas().front()).ok()); }

  // A call with everything in it: several ranges, an odd end, random hidden cells.
  static AttentionShape busy_shape() {
    AttentionShape shape;
    shape.byte_tables = std::get<1>(GetParam());
    shape.heads_per_kv = 3;
    shape.n_queries = 50;
    shape.n_cells = 1111;
    shape.rope = plain_rope(64, RopeMode::kNeox);
    return shape;
  }

  // The output of `call` made by several, of `step` queries each.
  static Floats run_in_parts(AttentionCase& test, const AttentionCall& call, int step,
                             int n_threads) {
    std::fill(test.out().begin(), test.out().end(), 99.0F);
    ThreadParallelFor parallel(n_threads);
    AttentionWorkspace workspace;
    for (int first = 0; first < call.n_queries; first += step) {
      AttentionCall part = part_of(call, first, std::min(step, call.n_queries - first));
      ExactRows exact;
      if (call.exact != nullptr) {
        exact = *call.exact;
        exact.query_positions += first;
        part.exact = &exact;
      }
      const Status status = attend(part, parallel, workspace);
      EXPECT_TRUE(status.ok()) << status.message();
    }
    return {test.out().begin(), test.out().end()};
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, AttentionInvariance,
                         ::testing::Combine(::testing::ValuesIn(supported_isas()),
                                            ::testing::Bool()),
                         [](const auto& test) {
                           return std::get<0>(test.param) +
                                  (std::get<1>(test.param) ? "_bytes" : "_floats");
                         });

TEST_P(AttentionInvariance, ThreadsDoNotMatter) {
  for (const bool causal : {false, true}) {
    for (const int n_queries : {1, 2, 11, 50}) {
      AttentionShape shape = busy_shape();
      shape.n_queries = n_queries;
      shape.causal = causal;
      AttentionCase test(shape, 1);
      const Floats want = run_attention(test, test.call());
      for (const int n_threads : {2, 3, 8}) {
        ASSERT_TRUE(same_bits(run_attention(test, test.call(), n_threads), want))
            << n_queries << " queries, " << n_threads << " threads";
      }
    }
  }
}

TEST_P(AttentionInvariance, SplittingQueriesDoesNotMatter) {
  for (const bool causal : {false, true}) {
    AttentionShape shape = busy_shape();
    shape.causal = causal;
    AttentionCase test(shape, 2);
    const AttentionCall call = test.call();
    const Floats want = run_attention(test, call, 2);
    for (const int step : {1, 7, 49}) {
      ASSERT_TRUE(same_bits(run_in_parts(test, call, step, step), want)) << "by " << step;
    }
  }
}

// The window's rule is a matter of a query and a cell, not of what else is in the tile.
TEST_P(AttentionInvariance, ExactRowsDoNotDependOnTheCut) {
  AttentionShape shape = busy_shape();
  shape.exact_rows = true;
  shape.window = 400;
  AttentionCase test(shape, 4);
  const AttentionCall call = test.call();
  const Floats want = run_attention(test, call);
  EXPECT_TRUE(same_bits(run_attention(test, call, 3), want));
  EXPECT_TRUE(same_bits(run_in_parts(test, call, 3, 2), want));
}

// Sums over keys of all heads, beside exact rows: the rows of KV heads that a task takes together
// are not those of another cut.
TEST_P(AttentionInvariance, SumsOverKeysDoNotDependOnTheCut) {
  AttentionShape shape = busy_shape();
  shape.n_kv_heads = 3;
  shape.exact_rows = true;
  shape.window = 400;
  shape.sum_every = 2;
  AttentionCase test(shape, 5);
  const AttentionCall call = test.call();
  const Floats want = run_attention(test, call);
  for (const int n_threads : {2, 8}) {
    EXPECT_TRUE(same_bits(run_attention(test, call, n_threads), want)) << n_threads << " threads";
  }
  EXPECT_TRUE(same_bits(run_in_parts(test, call, 2, 3), want));
}

// Which blocks a query's cells stand in depends on the cells that it sees itself: of two
// interleaved sequences, each in cells of its own, and one in both.
TEST_P(AttentionInvariance, OtherSequencesInABlockDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 30;
  AttentionCase test(shape, 14);
  for (std::size_t t = 0; t < shape.n_cells; t++) {
    test.positions()[t] = static_cast<std::int32_t>(t % 100 < 50 ? t : t + 7);
    for (int i = 0; i < shape.n_queries; i++) {
      const bool sees = i % 3 == 2 || (t % 100 < 50) == (i % 3 == 0);
      test.mask()[i * shape.n_cells + t] = sees ? 0 : 0xFC00;
    }
  }
  const AttentionCall call = test.call();
  const Floats want = run_attention(test, call);
  for (const int step : {1, 2, 7}) {
    ASSERT_TRUE(same_bits(run_in_parts(test, call, step, 2), want)) << "by " << step;
  }
}

// A workspace keeps what it may use again: not what the call before saw.
TEST_P(AttentionInvariance, CallsBeforeDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 3;
  AttentionCase test(shape, 6);
  const AttentionCall call = test.call();
  ThreadParallelFor parallel(2);
  AttentionWorkspace workspace;
  const auto expect_fresh = [&](const AttentionCall& now, const char* what) {
    std::fill(test.out().begin(), test.out().end(), 99.0F);
    ASSERT_TRUE(attend(now, parallel, workspace).ok());
    const Floats reused = {test.out().begin(), test.out().end()};
    EXPECT_TRUE(same_bits(reused, run_attention(test, now))) << what;
  };
  expect_fresh(call, "first");
  expect_fresh(call, "again");
  test.mask()[shape.n_cells + 70] = kHalfMinusInfinity;
  test.mask()[shape.n_cells + 71] = 0;
  expect_fresh(call, "mask");
  test.positions()[500] = 1105;
  expect_fresh(call, "position");
  AttentionCall fewer = call;
  fewer.n_cells -= 64;
  expect_fresh(fewer, "cells");
  expect_fresh(part_of(call, 1, 2), "queries");
  AttentionCall without = call;
  without.mask = nullptr;
  expect_fresh(without, "no mask");
  expect_fresh(call, "as before");
}

// More cells at the end that nobody sees, in the same block and in later ones.
TEST_P(AttentionInvariance, HiddenCellsDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 5;
  AttentionCase test(shape, 3);
  AttentionCall call = test.call();
  const std::size_t n_cells = shape.n_cells;
  for (std::size_t seen : {1U, 64U, 100U, 512U, 600U}) {
    for (int i = 0; i < shape.n_queries; i++) {
      for (std::size_t t = seen; t < n_cells; t++) {
        test.mask()[i * n_cells + t] = 0xFC00;
      }
      test.mask()[i * n_cells] = 0;
    }
    const Floats all = run_attention(test, call);
    AttentionCall fewer = call;
    fewer.n_cells = seen;
    ASSERT_TRUE(same_bits(run_attention(test, fewer), all)) << seen << " cells";
    // The mask of the next round needs what this one hid.
    test = AttentionCase(shape, 3);
    call = test.call();
  }
}

TEST_P(AttentionInvariance, PositionsOfHiddenCellsDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 2;
  shape.causal = true;
  shape.n_cells = 700;
  AttentionCase test(shape, 4);
  for (int i = 0; i < shape.n_queries; i++) {
    for (const std::size_t t : {0U, 1U, 63U, 64U, 200U, 695U, 696U, 697U, 698U, 699U}) {
      test.mask()[i * shape.n_cells + t] = 0xFC00;
    }
  }
  const Floats want = run_attention(test, test.call());
  const std::int32_t garbage[] = {-1, std::numeric_limits<std::int32_t>::min(),
                                  std::numeric_limits<std::int32_t>::max(), 123456789};
  int next = 0;
  for (const std::size_t t : {0U, 1U, 63U, 64U, 200U, 695U, 696U, 697U, 698U, 699U}) {
    test.positions()[t] = garbage[next++ % 4];
  }
  ASSERT_TRUE(same_bits(run_attention(test, test.call()), want));
}

// Angles come from other tables, but they are the same angles.
TEST_P(AttentionInvariance, ReservedPositionsDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 3;
  AttentionCase test(shape, 5);
  const Floats want = run_attention(test, test.call());
  RopeTable small(*shape.rope);
  AttentionCall call = test.call();
  call.rope = &small;
  ASSERT_TRUE(same_bits(run_attention(test, call), want));
  small.reserve(100);
  ASSERT_TRUE(same_bits(run_attention(test, call), want));
  small.reserve(100000);
  ASSERT_TRUE(same_bits(run_attention(test, call), want));
}

TEST_P(AttentionInvariance, QueryThatSeesNothingGivesZeros) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 3;
  AttentionCase test(shape, 6);
  for (std::size_t t = 0; t < shape.n_cells; t++) {
    test.mask()[shape.n_cells + t] = 0xFC00;
  }
  const Floats out = run_attention(test, test.call(), 2);
  const std::size_t row = out.size() / 3;
  for (std::size_t i = row; i < 2 * row; i++) {
    ASSERT_EQ(out[i], 0.0F);
    ASSERT_FALSE(std::signbit(out[i]));
  }
  EXPECT_NE(out[0], 0.0F);
  EXPECT_NE(out[2 * row], 0.0F);
  // Alone in its call, with all blocks skipped.
  const Floats alone = run_attention(test, part_of(test.call(), 1, 1));
  for (std::size_t i = row; i < 2 * row; i++) {
    ASSERT_EQ(alone[i], 0.0F);
  }
}

// A head whose query is NaN gives NaN, and disturbs no other; in bytes also one with infinities.
TEST_P(AttentionInvariance, QueryThatIsNotFiniteGivesNan) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    AttentionShape shape = busy_shape();
    if (std::isinf(bad) && !shape.byte_tables) {
      continue;
    }
    shape.n_queries = 3;
    AttentionCase test(shape, 15);
    const Floats want = run_attention(test, test.call(), 2);
    const std::size_t head = static_cast<std::size_t>(test.n_heads()) + 1;  // query 1, head 1
    test.queries()[head * 64 + 5] = bad;
    const Floats out = run_attention(test, test.call(), 2);
    for (std::size_t i = 0; i < out.size(); i++) {
      if (i / 64 == head) {
        ASSERT_TRUE(std::isnan(out[i])) << i;
      } else {
        ASSERT_EQ(out[i], want[i]) << i;
      }
    }
  }
}

// [head][query][channel] with gaps, as a permuted tensor may be; gaps stay untouched.
TEST_P(AttentionInvariance, LayoutsDoNotMatter) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 4;
  AttentionCase test(shape, 7);
  AttentionCall call = test.call();
  const Floats want = run_attention(test, call);
  const int n_heads = test.n_heads();
  constexpr std::size_t kRow = 64 + 3;
  std::vector<float> queries(n_heads * shape.n_queries * kRow);
  std::vector<float> out(queries.size(), 77.0F);
  for (int h = 0; h < n_heads; h++) {
    for (int i = 0; i < shape.n_queries; i++) {
      std::copy_n(test.queries().data() + (i * n_heads + h) * 64, 64,
                  queries.data() + (h * shape.n_queries + i) * kRow);
    }
  }
  call.queries = reinterpret_cast<const std::uint8_t*>(queries.data());
  call.out = reinterpret_cast<std::uint8_t*>(out.data());
  call.query_bytes = call.out_bytes = kRow * sizeof(float);
  call.query_head_bytes = call.out_head_bytes = shape.n_queries * kRow * sizeof(float);
  run_attention(test, call);
  for (std::size_t at = 0; at < out.size(); at++) {
    const std::size_t h = at / kRow / shape.n_queries;
    const std::size_t i = at / kRow % shape.n_queries;
    const std::size_t d = at % kRow;
    ASSERT_EQ(out[at], d < 64 ? want[(i * n_heads + h) * 64 + d] : 77.0F) << at;
  }
}

// Codes and plain rows of the same values: coding adds nothing but the rounding to a
// centroid, so keys and values that are centroids give exact attention.
TEST_P(AttentionInvariance, CentroidsGiveExactAttention) {
  AttentionShape shape = busy_shape();
  shape.byte_tables = false;
  shape.rope.reset();
  shape.n_queries = 3;
  AttentionCase test(shape, 8);
  AttentionCall call = test.call();
  const Floats coded = run_attention(test, call);
  const CodeLayout layout(TensorSpec(shape.k, shape.n_kv_heads, 64));
  const std::size_t n_channels = static_cast<std::size_t>(shape.n_kv_heads) * 64;
  std::vector<std::uint16_t> rows[2];
  CacheSide* sides[2] = {&call.k, &call.v};
  for (int s = 0; s < 2; s++) {
    std::vector<std::uint16_t> codes(layout.n_codes());
    std::vector<std::uint16_t> codes_again(layout.n_codes());
    std::vector<float> row(n_channels);
    for (std::size_t cell = 0; cell < shape.n_cells; cell++) {
      get_codes(layout, sides[s]->data, cell, codes.data());
      sides[s]->codec->codebook().decode(codes.data(), 1, row.data(), row.size());
      sides[s]->codec->codebook().encode(row.data(), 1, row.size(), codes_again.data());
      ASSERT_EQ(codes, codes_again);
      for (const float value : row) {
        rows[s].push_back(float_to_half(value));
      }
    }
    sides[s]->codec = nullptr;
    sides[s]->data = reinterpret_cast<const std::uint8_t*>(rows[s].data());
    sides[s]->row_bytes = n_channels * 2;
    sides[s]->head_bytes = 64 * 2;
  }
  ASSERT_TRUE(same_bits(run_attention(test, call), coded));
}

// Adding a constant to all scores changes rounding only: 32 has 2^-18 ulps, so scores
// move by up to 2^-19 and outputs by 2 * 2^-19 * max|v|.
TEST_P(AttentionInvariance, ConstantInTheMaskChangesLittle) {
  AttentionShape shape = busy_shape();
  shape.n_queries = 3;
  shape.causal = true;
  AttentionCase test(shape, 9);
  const Floats want = run_attention(test, test.call());
  for (std::size_t i = 0; i < test.mask().size(); i++) {
    if (test.mask()[i] != 0xFC00) {
      test.mask()[i] = float_to_half(32.0F);
    }
  }
  const Floats moved = run_attention(test, test.call());
  for (std::size_t i = 0; i < want.size(); i++) {
    // A probability of a byte that stood between two may come out as the other one.
    ASSERT_NEAR(moved[i], want[i], shape.byte_tables ? 5e-3 : 5.0 * 0x1p-18);
  }
}

TEST_P(AttentionInvariance, WorkspaceServesCallsOfAnyShape) {
  ThreadParallelFor parallel(3);
  AttentionWorkspace workspace;
  for (const int n_queries : {1, 50, 2, 17}) {
    AttentionShape shape = busy_shape();
    shape.n_queries = n_queries;
    AttentionCase test(shape, 10);
    const Floats want = run_attention(test, test.call());
    ASSERT_TRUE(attend(test.call(), parallel, workspace).ok());
    ASSERT_TRUE(same_bits({test.out().begin(), test.out().end()}, want)) << n_queries;
    AttentionWorkspace moved(std::move(workspace));
    ASSERT_TRUE(attend(test.call(), parallel, moved).ok());
    workspace = std::move(moved);
  }
}

// Levels with fused multiply-add compute the same sums in the same order.
TEST(AttentionLevels, FusedLevelsAgreeToTheBit) {
  AttentionShape shape;
  shape.byte_tables = true;
  shape.heads_per_kv = 7;
  shape.head_dim_k = 80;
  shape.head_dim_v = 48;
  shape.n_queries = 9;
  shape.n_cells = 700;
  shape.rope = plain_rope(40, RopeMode::kNormal);
  AttentionCase test(shape, 11);
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  Floats first;
  for (const std::string& isa : supported_isas()) {
    if (isa == "scalar") {
      continue;
    }
    ASSERT_TRUE(force_isa(isa).ok());
    ASSERT_TRUE(attend(test.call(), parallel, workspace).ok());
    const Floats out(test.out().begin(), test.out().end());
    if (first.empty()) {
      first = out;
    }
    EXPECT_EQ(out, first) << isa;
  }
  ASSERT_TRUE(force_isa(supported_isas().front()).ok());
}

TEST(AttentionErrors, WrongShapesWriteNothing) {
  AttentionShape shape;
  shape.heads_per_kv = 2;
  shape.rope = plain_rope(64, RopeMode::kNeox);
  AttentionCase test(shape, 12);
  std::vector<AttentionCall> wrong(10, test.call());
  wrong[0].n_heads = 3;
  wrong[1].n_kv_heads = 0;
  wrong[2].n_kv_heads = 4;
  wrong[3].head_dim_k = 72;
  wrong[4].head_dim_v = 0;
  wrong[5].n_queries = -1;
  wrong[6].k.data = nullptr;
  wrong[7].v.data = nullptr;
  wrong[8].positions = nullptr;
  wrong[9].queries = nullptr;
  std::fill(test.out().begin(), test.out().end(), 5.0F);
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  for (std::size_t i = 0; i < wrong.size(); i++) {
    const Status status = attend(wrong[i], parallel, workspace);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << i;
    EXPECT_FALSE(status.message().empty()) << i;
    for (const float value : test.out()) {
      ASSERT_EQ(value, 5.0F) << i;
    }
  }
}

TEST(AttentionErrors, NoQueriesIsNoError) {
  AttentionShape shape;
  shape.n_queries = 0;
  AttentionCase test(shape, 13);
  ThreadParallelFor parallel(2);
  AttentionWorkspace workspace;
  EXPECT_TRUE(attend(test.call(), parallel, workspace).ok());
}

}  // namespace
}  // namespace cqkv
