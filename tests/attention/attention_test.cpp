// The attention operator against the double reference, at every level, over codecs,
// head sizes, head ratios, numbers of cells and queries, and forms of rope. That
// results do not depend on how a call is cut is in attention_invariance_test.cpp.
#include "attention/attention.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "attention/attention_case.h"
#include "attention/reference.h"

namespace cqkv {
namespace {

// Derivation, with q, k, v of standard normal channels. A score is a sum of d products
// with sum|terms| about 0.64 d, scaled by 1 / sqrt(d); each product carries the sum's
// d eps / 2 in the worst case and the 4 eps of a rotated pair: for d = 256 at most
// 256 * 6e-8 * 0.64 * 16 = 1.6e-4, and about a tenth of it since roundings differ in
// sign. An error ds of the scores moves the output by at most 2 ds max|v - out|, |v| < 5,
// if all scores are off in the worst way, and by ds / 10 if they are independent.
// 1e-4 is ten times what occurs; a wrong cell, head or angle gives 1e-2 and more.
constexpr double kTolerance = 1e-4;

// With byte tables. The largest of a channel's centroids is about 3.5, so that a channel is off
// by up to 0.014 and by 0.008 in the mean square; so is a score, after the scale. A probability
// is off by up to half of 1 / 127 of the block's largest. Over 100 cells and more an output is
// off by 0.0025 in the mean square; over two or three by 0.03 at most. A wrong cell gives 0.1.
constexpr double kByteTolerance = 0.04;

struct ShapeCase {
  std::uint64_t seed = 1;
  int n_threads = 1;
};

// The case at every level against the reference, to the tolerance of its tables.
void expect_matches_reference(AttentionCase& test, const AttentionCall& call, int n_threads = 1) {
  const double tolerance = test.shape().byte_tables ? kByteTolerance : kTolerance;
  const std::vector<double> want = reference_attend(call);
  ThreadParallelFor parallel(n_threads);
  AttentionWorkspace workspace;
  for (const std::string& isa : supported_isas()) {
    ASSERT_TRUE(force_isa(isa).ok());
    std::fill(test.out().begin(), test.out().end(), 99.0F);
    const AttentionCall fresh = test.call();  // with tables for the kernels of the level
    AttentionCall at_level = call;
    at_level.k.codec = fresh.k.codec;
    at_level.v.codec = fresh.v.codec;
    at_level.key_sums = fresh.key_sums;
    const Status status = attend(at_level, parallel, workspace);
    ASSERT_TRUE(status.ok()) << status.message();
    double worst = 0;
    std::size_t worst_at = 0;
    for (std::size_t i = 0; i < want.size(); i++) {
      const double error = std::abs(test.out()[i] - want[i]);
      if (!(error <= worst)) {  // NaN too
        worst = error;
        worst_at = i;
      }
    }
    ASSERT_LT(worst, tolerance) << isa << ", " << test.shape().name() << ", " << n_threads
                                << " threads: element " << worst_at << " is "
                                << test.out()[worst_at] << ", want " << want[worst_at];
  }
}

// With byte tables too where there are codes.
void expect_matches_reference(const AttentionShape& shape, ShapeCase how = {}) {
  SCOPED_TRACE("seed " + std::to_string(how.seed));
  AttentionCase floats(shape, how.seed);
  expect_matches_reference(floats, floats.call(), how.n_threads);
  if (!shape.k.exact() || !shape.v.exact()) {
    AttentionShape bytes = shape;
    bytes.byte_tables = true;
    AttentionCase test(bytes, how.seed);
    expect_matches_reference(test, test.call(), how.n_threads);
  }
}

TEST(Attention, EveryCodecOfInterest) {
  for (const char* name : {"2c8b", "4c8b", "4c9b", "8c8b", "8c10b", "16c12b", "1c2b", "8c4b",
                           "16c1b", "2c5b", "1c12b", "exact"}) {
    AttentionShape shape;
    shape.k = shape.v = CodecSpec::parse(name).value();
    shape.heads_per_kv = 3;
    shape.n_queries = 2;
    shape.n_cells = 131;
    if (!shape.k.exact()) {
      shape.rope = plain_rope(64, RopeMode::kNeox);
    }
    expect_matches_reference(shape);
  }
}

TEST(Attention, EveryGroupDimAndCodeBits) {
  for (const int group_dim : {1, 2, 4, 8, 16, 32}) {
    for (int bits = 1; bits <= kMaxCodeBits; bits++) {
      AttentionShape shape;
      shape.k = {group_dim, bits};
      shape.v = {group_dim, kMaxCodeBits + 1 - bits};
      shape.n_kv_heads = 1;
      shape.head_dim_k = shape.head_dim_v = 32;
      shape.n_cells = 70;
      shape.rope = plain_rope(32, RopeMode::kNormal);
      expect_matches_reference(shape);
    }
  }
}

// Rates by head: groups of a size of its own for every KV head, up to the whole head, or no codes;
// codes where they lie and gathered, few rows and many, beside exact rows.
TEST(Attention, HeadsOfUnequalRates) {
  for (const int bits : {8, 5, 10}) {
    for (const int n_queries : {1, 12}) {
      for (const bool exact_rows : {false, true}) {
        AttentionShape shape;
        shape.k = shape.v = {8, bits};
        shape.n_kv_heads = 4;
        shape.k_dims = {2, 64, 16, 32};
        shape.v_dims = {64, 4, 32, 64};
        shape.n_queries = n_queries;
        shape.n_cells = 200;
        shape.scrambled = n_queries > 1;
        shape.exact_rows = exact_rows;
        shape.rope = plain_rope(64, RopeMode::kNeox);
        expect_matches_reference(shape);
        shape.k_dims = {2, 0, 64, 0};
        shape.v_dims = {0, 4, 0, 64};
        expect_matches_reference(shape);
        shape.v_dims = {0, 0, 0, 0};
        expect_matches_reference(shape);
      }
    }
  }
}

// Bases: ordered keys and rotated values, with and without rotation by position, few rows and many,
// several ranges split over threads, beside exact rows and sums over keys.
TEST(Attention, Bases) {
  for (const int n_queries : {1, 12}) {
    for (const bool exact_rows : {false, true}) {
      for (const RopeMode mode : {RopeMode::kNeox, RopeMode::kNormal}) {
        AttentionShape shape;
        shape.bases = true;
        shape.n_kv_heads = 4;
        shape.heads_per_kv = 2;
        shape.k_dims = {2, 64, 0, 32};
        shape.v_dims = {64, 4, 32, 0};
        shape.n_queries = n_queries;
        shape.n_cells = 1200;
        shape.exact_rows = exact_rows;
        shape.rope = plain_rope(64, mode);
        expect_matches_reference(shape, {1, 4});
        shape.rope->n_dims = 20;
        shape.head_dim_v = 72;
        shape.v_dims = {8, 8, 4, 2};
        shape.n_cells = 300;
        expect_matches_reference(shape);
        shape.rope.reset();
        shape.k_dims.clear();
        shape.sum_every = 3;
        expect_matches_reference(shape);
      }
    }
  }
}

// Pairs side by side in every head, as bases are learned: kernels that load whole groups take them
// in the order of components, with angles of each head; some of them turn, some do not.
TEST(Attention, BasesThatKeepPairsTogether) {
  for (const int n_queries : {1, 12}) {
    for (const RopeMode mode : {RopeMode::kNeox, RopeMode::kNormal}) {
      AttentionShape shape;
      shape.bases = true;
      shape.partner = mode == RopeMode::kNeox ? 32 : 1;
      shape.heads_per_kv = 3;
      shape.n_kv_heads = 4;
      shape.k_dims = {4, 64, 8, 0};
      shape.v_dims = {64, 0, 32, 2};
      shape.n_queries = n_queries;
      shape.n_cells = 700;
      shape.exact_rows = n_queries == 1;
      shape.rope = plain_rope(64, mode);
      shape.byte_tables = true;
      AttentionCase test(shape, 1);
      const AttentionCall call = test.call();
      EXPECT_EQ(call.k.codec->tables()->takes_components(),
                call.k.codec->tables()->order() == kernels::TableOrder::kByCode);
      expect_matches_reference(shape);
      shape.rope.reset();
      shape.partner = 1;
      expect_matches_reference(shape);
    }
  }
}

TEST(Attention, KeysAndValuesOfDifferentKinds) {
  for (const char* keys : {"8c8b", "exact", "2c8b"}) {
    for (const char* values : {"8c8b", "exact", "4c9b"}) {
      AttentionShape shape;
      shape.k = CodecSpec::parse(keys).value();
      shape.v = CodecSpec::parse(values).value();
      shape.rope = plain_rope(64, RopeMode::kNormal);
      shape.n_cells = 200;
      expect_matches_reference(shape);
    }
  }
}

// Values predicted from keys: all groups and some, of all heads; head sizes and numbers of groups
// that leave padding; few rows and many.
TEST(Attention, SumsOverKeys) {
  for (const char* keys : {"8c8b", "4c8b", "2c5b", "8c10b", "1c9b"}) {
    for (const int sum_every : {1, 3}) {
      for (const int n_queries : {1, 12}) {
        AttentionShape shape;
        shape.k = CodecSpec::parse(keys).value();
        shape.n_kv_heads = 3;
        shape.heads_per_kv = 2;
        shape.head_dim_k = 72;
        shape.head_dim_v = 40;
        shape.n_queries = n_queries;
        shape.n_cells = 560;
        shape.sum_every = sum_every;
        shape.rope = plain_rope(72, RopeMode::kNeox);
        expect_matches_reference(shape, {1, n_queries == 1 ? 3 : 1});
      }
    }
  }
}

AttentionShape exact_shape(const char* keys, const char* values, int n_queries, int window) {
  AttentionShape shape;
  shape.k = CodecSpec::parse(keys).value();
  shape.v = CodecSpec::parse(values).value();
  shape.heads_per_kv = 3;
  shape.n_queries = n_queries;
  shape.n_cells = 200;
  shape.exact_rows = true;
  shape.window = window;
  return shape;
}

// Cells seen exactly have the values of their rows, with nothing added.
TEST(Attention, SumsOverKeysBesideExactRows) {
  for (const char* values : {"8c8b", "2c5b", "1c9b"}) {
    for (const int n_queries : {1, 40}) {
      for (const int window : {0, 30, 300}) {
        AttentionShape shape = exact_shape("8c8b", values, n_queries, window);
        shape.sum_every = 1;
        shape.rope = plain_rope(64, RopeMode::kNormal);
        expect_matches_reference(shape);
      }
    }
  }
}

// Keys that are decoded to floats beside values in bytes: the sums are in bytes all the same.
TEST(Attention, SumsOverKeysWithoutByteTables) {
  for (const char* codec : {"8c8b", "4c5b"}) {
    for (const int n_queries : {1, 40}) {
      AttentionShape shape = exact_shape(codec, codec, n_queries, 30);
      shape.byte_tables = true;
      shape.sum_every = 3;
      shape.rope = plain_rope(64, RopeMode::kNormal);
      AttentionCase test(shape, 1);
      AttentionCall call = test.call();
      const TensorCodec keys(call.k.codec->codebook());
      call.k.codec = &keys;
      const std::vector<double> want = reference_attend(call);
      const Floats got = run_attention(test, call);
      for (std::size_t i = 0; i < want.size(); i++) {
        ASSERT_NEAR(got[i], want[i], kByteTolerance) << shape.name() << ", element " << i;
      }
    }
  }
}

// A cap that most scores of size 1 to 3 feel, and one that none does.
TEST(Attention, CapsScores) {
  for (const char* codec : {"8c8b", "8c10b", "exact"}) {
    for (const float softcap : {1.5F, 50.0F}) {
      for (const int n_queries : {1, 40}) {
        AttentionShape shape = exact_shape(codec, codec, n_queries, 30);
        shape.exact_rows = !shape.k.exact();
        shape.softcap = softcap;
        expect_matches_reference(shape);
      }
    }
  }
}

// Logits beside the scores; a head that sees nothing still gets zeros.
TEST(Attention, LearnedSinks) {
  for (const char* codec : {"8c8b", "exact"}) {
    for (const std::size_t n_cells : {0, 1, 700}) {
      for (const int n_threads : {1, 3}) {
        AttentionShape shape;
        shape.k = shape.v = CodecSpec::parse(codec).value();
        shape.heads_per_kv = 3;
        shape.n_cells = n_cells;
        shape.sink_logits = true;
        expect_matches_reference(shape, {n_cells, n_threads});
        shape.softcap = 2.0F;
        shape.n_queries = 50;
        expect_matches_reference(shape, {n_cells, n_threads});
      }
    }
  }
}

// One far above all scores takes everything, one far below nothing.
TEST(Attention, SinksOfAnySize) {
  AttentionShape shape;
  shape.sink_logits = true;
  AttentionCase test(shape, 1);
  AttentionCall call = test.call();
  const Floats large(test.n_heads(), 500.0F);
  call.sink_logits = large.data();
  EXPECT_EQ(run_attention(test, call), Floats(test.out().size(), 0.0F));
  const Floats small(test.n_heads(), -500.0F);
  call.sink_logits = small.data();
  const Floats with_small = run_attention(test, call);
  call.sink_logits = nullptr;
  EXPECT_TRUE(same_bits(with_small, run_attention(test, call)));
}

TEST(Attention, EveryNumberOfCells) {
  for (const std::size_t n_cells : {0, 1, 2, 31, 63, 64, 65, 100, 511, 512, 513, 1100, 1600}) {
    AttentionShape shape;
    shape.rope = plain_rope(64, RopeMode::kNeox);
    shape.heads_per_kv = 3;
    shape.n_cells = n_cells;
    expect_matches_reference(shape, {n_cells, 1});
    expect_matches_reference(shape, {n_cells, 3});
    shape.k = shape.v = CodecSpec{};
    expect_matches_reference(shape, {n_cells, 2});
  }
}

TEST(Attention, HeadRatiosAndSizes) {
  for (const int heads_per_kv : {1, 3, 4, 6, 7, 8}) {
    for (const int head_dim : {64, 80, 96, 128, 256}) {
      AttentionShape shape;
      shape.heads_per_kv = heads_per_kv;
      shape.head_dim_k = shape.head_dim_v = head_dim;
      shape.k.code_bits = shape.v.code_bits = 4;
      shape.n_cells = 90;
      shape.rope = plain_rope(head_dim, RopeMode::kNeox);
      expect_matches_reference(shape);
    }
  }
}

TEST(Attention, OddHeadSizes) {
  for (const int head_dim : {8, 24, 40, 72, 200}) {
    AttentionShape shape;
    shape.head_dim_k = head_dim;
    shape.head_dim_v = head_dim + 8;
    shape.n_cells = 90;
    shape.rope = plain_rope(head_dim, RopeMode::kNeox);
    expect_matches_reference(shape);
  }
  for (const int head_dim : {1, 3, 5, 33}) {
    AttentionShape shape;
    shape.k = {1, 6};
    shape.v = {1, 3};
    shape.head_dim_k = shape.head_dim_v = head_dim;
    expect_matches_reference(shape);
    shape.k = shape.v = CodecSpec{};
    expect_matches_reference(shape);
  }
}

TEST(Attention, ManyQueries) {
  for (const int n_queries : {2, 5, 31, 100, 300}) {
    AttentionShape shape;
    shape.rope = plain_rope(64, RopeMode::kNormal);
    shape.k.code_bits = shape.v.code_bits = 5;
    shape.heads_per_kv = 3;
    shape.n_kv_heads = 1;
    shape.n_queries = n_queries;
    shape.n_cells = 620;
    shape.causal = true;
    expect_matches_reference(shape, {7, 2});
  }
}

// Cells seen coded by some queries of a tile and exactly by others, sinks, rows in pool and
// batch, partial blocks: the oracle decides for each query and cell by the rule alone.
TEST(Attention, ExactRows) {
  for (const char* keys : {"8c8b", "4c9b", "exact"}) {
    for (const char* values : {"8c8b", "exact", "2c5b"}) {
      for (const int n_queries : {1, 5, 90}) {
        for (const int window : {0, 1, 30, 300}) {
          AttentionShape shape = exact_shape(keys, values, n_queries, window);
          if (!shape.k.exact()) {
            shape.rope = plain_rope(64, RopeMode::kNeox);
          }
          expect_matches_reference(shape, {static_cast<std::uint64_t>(window + 1), 2});
        }
      }
    }
  }
}

TEST(Attention, ExactRowsOfOddHeads) {
  for (const int head_dim : {24, 40, 80, 96, 256}) {
    AttentionShape shape;
    shape.head_dim_k = head_dim;
    shape.head_dim_v = head_dim + 8;
    shape.n_kv_heads = 3;
    shape.n_cells = 600;
    shape.n_queries = 3;
    shape.exact_rows = true;
    shape.scrambled = true;
    shape.window = 2000;
    shape.rope = plain_rope(head_dim, RopeMode::kNormal);
    expect_matches_reference(shape);
  }
}

TEST(Attention, ExactRowsNeedTheirTables) {
  AttentionShape shape;
  shape.exact_rows = true;
  AttentionCase test(shape, 1);
  AttentionCall call = test.call();
  call.positions = nullptr;
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
  ExactRows incomplete = *test.call().exact;
  incomplete.v.pool = nullptr;
  call = test.call();
  call.exact = &incomplete;
  EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
}

TEST(Attention, WithoutAMask) {
  AttentionShape shape;
  shape.with_mask = false;
  shape.rope = plain_rope(64, RopeMode::kNeox);
  shape.n_queries = 3;
  expect_matches_reference(shape);
}

TEST(Attention, MoreHeadsThanATile) {
  AttentionShape shape;
  shape.n_kv_heads = 1;
  shape.heads_per_kv = 150;
  shape.n_queries = 2;
  expect_matches_reference(shape, {1, 2});
}

TEST(Attention, FormsOfRope) {
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    AttentionShape shape;
    shape.head_dim_k = shape.head_dim_v = 80;
    shape.n_cells = 150;
    shape.scrambled = true;
    shape.rope = plain_rope(80, mode);
    expect_matches_reference(shape);
    shape.rope->n_dims = 20;  // partial rotary: 60 channels are not rotated
    expect_matches_reference(shape);
    shape.rope->freq_scale = 0.25F;
    shape.rope->ext_factor = 1.0F;
    shape.rope->n_ctx_orig = 1024;
    shape.rope->attn_factor = 0.8F;
    expect_matches_reference(shape);
    shape.rope = plain_rope(80, mode);
    for (int i = 0; i < 40; i++) {
      shape.rope->freq_factors.push_back(1.0F + 0.25F * static_cast<float>(i));
    }
    expect_matches_reference(shape);
  }
}

// Queries of nothing but pairs that stand still within a block (the last eight of 64 at base
// 10000), which a magnitude of 2 would carry beyond 16 bits if it were forgotten in their scale.
TEST(Attention, PairsThatStandStillHaveTheMagnitude) {
  AttentionShape shape;
  shape.byte_tables = true;
  shape.head_dim_k = shape.head_dim_v = 128;
  shape.n_cells = 150;
  shape.rope = plain_rope(128, RopeMode::kNeox);
  shape.rope->attn_factor = 2.0F;
  AttentionCase test(shape, 1);
  for (std::size_t i = 0; i < test.queries().size(); i++) {
    if (i % 64 < 56) {
      test.queries()[i] = 0.0F;
    }
  }
  expect_matches_reference(test, test.call());
}

// A side all of whose heads are without codes takes no memory, so that there may be none.
TEST(Attention, ASideWithoutCodesNeedsNoMemory) {
  AttentionShape shape;
  shape.k_dims = {8, 8};
  shape.v_dims = {0, 0};
  shape.byte_tables = true;
  AttentionCase test(shape, 1);
  AttentionCall call = test.call();
  call.v.data = nullptr;
  expect_matches_reference(test, call);
  call.k.data = nullptr;
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
}

// Tables made for other kernels are an error, not a slow path or wrong angles.
TEST(Attention, TablesOfOtherKernelsAreRefused) {
  AttentionShape shape;
  shape.byte_tables = true;
  shape.rope = plain_rope(64, RopeMode::kNeox);
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  for (const std::string& made_for : supported_isas()) {
    ASSERT_TRUE(force_isa(made_for).ok());
    AttentionCase test(shape, 1);
    const AttentionCall call = test.call();
    for (const std::string& used_by : supported_isas()) {
      ASSERT_TRUE(force_isa(used_by).ok());
      const Status status = attend(call, parallel, workspace);
      EXPECT_EQ(status.ok(), used_by == made_for) << made_for << " " << used_by;
      if (!status.ok()) {
        EXPECT_NE(status.message().find("other kernels than those of " + used_by),
                  std::string::npos)
            << status.message();
      }
    }
  }
  ASSERT_TRUE(force_isa(supported_isas().front()).ok());
}

// A group of codes that are all one centroid, and scores that are all equal.
TEST(Attention, UniformScoresGiveTheMean) {
  AttentionShape shape;
  shape.n_cells = 128;
  shape.with_mask = false;
  AttentionCase test(shape, 1);
  std::fill(test.queries().begin(), test.queries().end(), 0.0F);
  const std::vector<double> want = reference_attend(test.call());
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  ASSERT_TRUE(attend(test.call(), parallel, workspace).ok());
  for (std::size_t i = 0; i < want.size(); i++) {
    ASSERT_NEAR(test.out()[i], want[i], 128 * 0x1p-23 * 4);
  }
}

// Positions that run on from any beginning, break off inside a block, or interleave: in place,
// spread over blocks, several cells at one position.
TEST(Attention, PositionsThatRunOnAndThatDoNot) {
  for (const int kind : {0, 1, 2, 3}) {
    for (const int n_queries : {1, 3, 40}) {
      AttentionShape shape;
      shape.rope = plain_rope(64, RopeMode::kNeox);
      shape.heads_per_kv = 2;
      shape.n_cells = 700;
      shape.n_queries = n_queries;
      shape.byte_tables = true;
      AttentionCase test(shape, 3);
      for (std::size_t t = 0; t < shape.n_cells; t++) {
        const auto cell = static_cast<std::int32_t>(t);
        const std::int32_t positions[] = {cell + 4000, cell < 300 ? cell : cell + 17,
                                          cell / 3 + cell % 3 * 1000, cell == 333 ? 5 : cell};
        test.positions()[t] = positions[kind];
      }
      SCOPED_TRACE("kind " + std::to_string(kind));
      expect_matches_reference(test, test.call());
    }
  }
}

// Queries of any size: the scale of their 16 bits follows them.
TEST(Attention, TinyHugeAndZeroQueries) {
  for (const float size : {0.0F, 1e-38F, 1e-20F, 1e4F, 1e15F}) {
    AttentionShape shape;
    shape.rope = plain_rope(64, RopeMode::kNeox);
    shape.byte_tables = true;
    AttentionCase test(shape, 4);
    for (float& value : test.queries()) {
      value *= size;
    }
    AttentionCall call = test.call();
    call.scale = size > 1.0F ? call.scale / size : call.scale;
    SCOPED_TRACE(size);
    expect_matches_reference(test, call);
  }
}

// Codes finer than bytes: their tables say so; coarse ones are fine.
TEST(Attention, TablesKnowTheirError) {
  Rng rng(1);
  for (const auto& [name, fine] :
       {std::pair{"1c12b", true}, std::pair{"1c8b", true}, std::pair{"1c4b", false},
        std::pair{"2c8b", false}, std::pair{"8c8b", false}}) {
    const CodecSpec spec = CodecSpec::parse(name).value();
    std::vector<float> centroids(static_cast<std::size_t>(2) * 16 * spec.n_centroids());
    for (float& value : centroids) {
      value = static_cast<float>(rng.normal());
    }
    const auto codebook = TensorCodebook::create(spec, 2, 16, centroids).value();
    const ByteTables tables = ByteTables::values(codebook, kernels::TableOrder::kByCode);
    EXPECT_EQ(tables.error() > ByteTables::kMaxError, fine) << name << ": " << tables.error();
  }
}

// To the edges of a block, 32 positions from its centre.
TEST(Attention, TablesKnowWhichPairsTurn) {
  const RopeParams rope = plain_rope(256, RopeMode::kNeox);
  const KeyPairs pairs = KeyPairs::of(256, &rope);
  EXPECT_EQ(pairs.n_rotated(), 128);
  EXPECT_EQ(pairs.n_turning, 112);
  EXPECT_EQ(KeyPairs::of(256, nullptr).n_turning, 0);
}

TEST(Attention, TablesOfAnotherRotationAreRefused) {
  AttentionShape shape;
  shape.byte_tables = true;
  shape.rope = plain_rope(64, RopeMode::kNeox);
  AttentionCase test(shape, 1);
  AttentionCall call = test.call();
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  const RopeTable normal(plain_rope(64, RopeMode::kNormal));
  const RopeTable partial(plain_rope(32, RopeMode::kNeox));
  RopeParams faster = *shape.rope;
  faster.freq_base /= 2;
  const RopeTable another_base(faster);
  RopeParams scaled = *shape.rope;
  scaled.freq_scale = 0.5F;
  const RopeTable interpolated(scaled);
  for (const RopeTable* other :
       {static_cast<const RopeTable*>(nullptr), &normal, &partial, &another_base, &interpolated}) {
    call.rope = other;
    EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
  }
}

TEST(Attention, SumsOverKeysOfAnotherShapeAreRefused) {
  AttentionShape shape;
  shape.sum_every = 1;
  AttentionCase test(shape, 1);
  shape.head_dim_v = 32;
  AttentionCase narrow_values(shape, 1);
  shape.head_dim_v = 64;
  shape.k = {8, 4};
  AttentionCase coarse_keys(shape, 1);
  shape.k = {8, 8};
  shape.n_kv_heads = 1;
  AttentionCase one_head(shape, 1);
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  for (AttentionCase* other : {&narrow_values, &coarse_keys, &one_head}) {
    AttentionCall call = test.call();
    call.key_sums = other->call().key_sums;
    EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
  }
  shape = {};
  shape.v = CodecSpec{};
  AttentionCase exact_values(shape, 1);
  AttentionCall call = exact_values.call();
  call.key_sums = test.call().key_sums;
  EXPECT_EQ(attend(call, parallel, workspace).code(), StatusCode::kInvalidArgument);
}

// Scores of several hundred: exponentials underflow, nothing overflows.
TEST(Attention, HugeScores) {
  AttentionShape shape;
  shape.n_cells = 200;
  shape.n_queries = 3;
  AttentionCase test(shape, 1);
  AttentionCall call = test.call();
  call.scale = 50.0F;
  const std::vector<double> want = reference_attend(call);
  ThreadParallelFor parallel(1);
  AttentionWorkspace workspace;
  ASSERT_TRUE(attend(call, parallel, workspace).ok());
  for (std::size_t i = 0; i < want.size(); i++) {
    ASSERT_NEAR(test.out()[i], want[i], 400 * kTolerance) << "errors of scores grow with the scale";
  }
}

}  // namespace
}  // namespace cqkv
