// Costs that are measured again, and the codebook of a budget. Choosing rates is in rates_test.cpp,
// the model that reads codes in gradient_test.cpp, the whole way in calibrate_test.cpp.
#include "calibration/budget.h"

#include <vector>

#include <gtest/gtest.h>

#include "calibration/rates.h"
#include "core/rng.h"
#include "support/codebooks.h"

namespace cqkv {
namespace {

constexpr int kHeads = 2;
constexpr int kHeadDim = 16;
constexpr int kChannels = kHeads * kHeadDim;

// Groups of 4 and 16 channels, and no codes.
RatedSide make_side(int layer, KvKind kind, std::uint64_t seed) {
  RatedSide side{layer, kind, {}};
  for (const int dim : {4, 16, 0}) {
    side.tensor.codebooks.push_back(
        testing::random_mixed_tensor(8, {dim, dim}, kHeadDim, seed + static_cast<unsigned>(dim)));
    const double bits = side.tensor.codebooks.back().spec().n_codes(0) * 8;
    side.tensor.heads.resize(kHeads);
    for (auto& options : side.tensor.heads) {
      options.push_back({dim, bits, 1.0 / (1.0 + bits)});
    }
  }
  return side;
}

std::vector<float> random_rows(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> rows(n * kChannels);
  for (float& value : rows) {
    value = static_cast<float>(rng.normal());
  }
  return rows;
}

KvRows rows_of(int layer, KvKind kind, const std::vector<float>& rows,
               const std::vector<float>& gradients) {
  KvRows result;
  result.layer = layer;
  result.kind = kind;
  result.shape = {kHeads, kHeadDim};
  result.n_tokens = rows.size() / kChannels;
  result.rows = rows.data();
  result.gradients = gradients.data();
  return result;
}

// Sequences of 300 and 77 rows cost what all 377 cost together, for any number of threads; what no
// rows came of keeps its costs.
TEST(CostMeter, TakesTheMeanOverAllRows) {
  const std::size_t counts[2] = {300, 77};
  std::vector<float> rows[2];
  std::vector<float> gradients[2];
  std::vector<float> all_rows;
  std::vector<float> all_gradients;
  for (std::size_t i = 0; i < 2; i++) {
    rows[i] = random_rows(counts[i], 1 + i);
    gradients[i] = random_rows(counts[i], 3 + i);
    all_rows.insert(all_rows.end(), rows[i].begin(), rows[i].end());
    all_gradients.insert(all_gradients.end(), gradients[i].begin(), gradients[i].end());
  }
  const std::vector<RatedSide> before = {make_side(0, KvKind::kKey, 1),
                                         make_side(0, KvKind::kValue, 2),
                                         make_side(2, KvKind::kKey, 3)};
  std::vector<RatedSide> first;
  for (const int n_threads : {1, 3}) {
    std::vector<RatedSide> sides = before;
    ThreadParallelFor parallel(n_threads);
    CostMeter meter(sides, parallel);
    for (std::size_t i = 0; i < 2; i++) {
      ASSERT_TRUE(meter.add(rows_of(0, KvKind::kValue, rows[i], gradients[i])).ok());
      ASSERT_TRUE(meter.add(rows_of(2, KvKind::kKey, rows[i], rows[i])).ok());
      ASSERT_TRUE(meter.add(rows_of(1, KvKind::kKey, rows[i], gradients[i])).ok()) << "no side";
    }
    meter.set_losses(sides);
    for (std::size_t rate = 0; rate < 3; rate++) {
      const auto want = coding_losses(sides[1].tensor.codebooks[rate], all_rows.data(),
                                      all_gradients.data(), counts[0] + counts[1]);
      for (std::size_t head = 0; head < kHeads; head++) {
        EXPECT_NEAR(sides[1].tensor.heads[head][rate].loss, want[head], 1e-9 * want[head]);
        EXPECT_EQ(sides[0].tensor.heads[head][rate].loss, before[0].tensor.heads[head][rate].loss);
        if (n_threads > 1) {
          EXPECT_EQ(sides[1].tensor.heads[head][rate].loss, first[1].tensor.heads[head][rate].loss);
        }
      }
    }
    // Once more where they are not less.
    std::vector<RatedSide> raised = sides;
    raised[1].tensor.heads[0][0].loss += 5;
    raised[1].tensor.heads[1][2].loss = 0;
    meter.raise_losses(raised);
    EXPECT_EQ(raised[1].tensor.heads[0][0].loss, sides[1].tensor.heads[0][0].loss + 5);
    EXPECT_EQ(raised[1].tensor.heads[1][2].loss, sides[1].tensor.heads[1][2].loss);
    first = n_threads == 1 ? sides : first;
  }
}

// The first key head costs much, all else little: it alone gets the fine groups.
TEST(FillCodebook, GivesBitsToWhatCosts) {
  std::vector<RatedSide> sides = {make_side(0, KvKind::kKey, 1), make_side(0, KvKind::kValue, 2),
                                  make_side(2, KvKind::kValue, 3)};
  for (RateOption& option : sides[0].tensor.heads[0]) {
    option.loss *= 1000;
  }
  Codebook codebook;
  codebook.layers.resize(7);  // are replaced
  ASSERT_TRUE(fill_codebook(sides, 32.0 / (3 * kChannels), codebook).ok());
  ASSERT_EQ(codebook.layers.size(), 3U);
  EXPECT_EQ(codebook.layers[0].get(KvKind::kKey)->spec().group_dims(), (std::vector<int>{4, 0}));
  EXPECT_EQ(codebook.layers[0].get(KvKind::kValue)->spec().n_codes(), 0);
  EXPECT_EQ(codebook.layers[1].get(KvKind::kKey), nullptr);
  EXPECT_EQ(codebook.layers[2].get(KvKind::kKey), nullptr);
  EXPECT_EQ(codebook.layers[2].get(KvKind::kValue)->spec().n_codes(), 0);
  ASSERT_TRUE(fill_codebook(sides, 2, codebook).ok());
  for (const RatedSide& side : sides) {
    EXPECT_EQ(codebook.layers[side.layer].get(side.kind)->spec().group_dims(),
              (std::vector<int>{4, 4}));
  }
}

}  // namespace
}  // namespace cqkv
