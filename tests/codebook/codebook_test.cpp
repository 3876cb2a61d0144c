// Codebooks in memory: what create refuses, what identity depends on, sizes, and that
// encoding finds a nearest centroid. Learning them is in learn_test.cpp.
#include "cqkv/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/half.h"
#include "core/rng.h"

namespace cqkv {
namespace {

std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.normal());
  }
  return values;
}

std::size_t centroid_floats(const CodecSpec& spec, int n_kv_heads, int head_dim) {
  return static_cast<std::size_t>(n_kv_heads) * head_dim * spec.n_centroids();
}

TensorCodebook make_tensor(const CodecSpec& spec, int n_kv_heads, int head_dim,
                           std::uint64_t seed = 1) {
  auto tensor = TensorCodebook::create(
      spec, n_kv_heads, head_dim, random_floats(centroid_floats(spec, n_kv_heads, head_dim), seed));
  EXPECT_TRUE(tensor.ok()) << tensor.status().message();
  return *std::move(tensor);
}

double squared_distance(const float* x, const float* y, int dim) {
  double square = 0;
  for (int j = 0; j < dim; j++) {
    const double step = static_cast<double>(x[j]) - static_cast<double>(y[j]);
    square += step * step;
  }
  return square;
}

TEST(TensorCodebookCreate, RefusesAWrongCount) {
  const CodecSpec spec{8, 4};
  for (const int off : {-1, 1}) {
    const auto result =
        TensorCodebook::create(spec, 2, 16, std::vector<float>(centroid_floats(spec, 2, 16) + off));
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(result.status().message().find("512"), std::string::npos);
  }
}

TEST(TensorCodebookCreate, RefusesIllegalShapes) {
  const auto code = [](CodecSpec spec, int n_kv_heads, int head_dim) {
    return TensorCodebook::create(spec, n_kv_heads, head_dim, std::vector<float>()).status().code();
  };
  EXPECT_EQ(code({8, 0}, 1, 16), StatusCode::kInvalidArgument);   // exact
  EXPECT_EQ(code({3, 8}, 1, 18), StatusCode::kInvalidArgument);   // group size
  EXPECT_EQ(code({8, 13}, 1, 16), StatusCode::kInvalidArgument);  // bits
  EXPECT_EQ(code({8, 4}, 1, 20), StatusCode::kInvalidArgument);   // does not divide
  EXPECT_EQ(code({8, 4}, 0, 16), StatusCode::kInvalidArgument);   // heads
}

TEST(TensorCodebookCreate, RefusesValuesBeyondHalfFloats) {
  const CodecSpec spec{4, 2};
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 65520.0F, -1e30F}) {
    auto centroids = random_floats(centroid_floats(spec, 2, 8), 2);
    centroids[16 * 3 + 5] = bad;  // Group 3 of all: head 1, group 1.
    const auto result = TensorCodebook::create(spec, 2, 8, centroids);
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(result.status().message().find("KV head 1, group 1"), std::string::npos)
        << result.status().message();
  }
  auto largest = random_floats(centroid_floats(spec, 2, 8), 2);
  largest[0] = 65519.0F;  // Rounds down to the largest half float, 65504.
  const auto result = TensorCodebook::create(spec, 2, 8, largest);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(half_to_float(result->centroids()[0]), 65504.0F);
}

TEST(TensorCodebookCreate, RoundsToHalfFloats) {
  const auto tensor = make_tensor({8, 6}, 2, 32);
  const auto given = random_floats(tensor.centroids().size(), 1);
  for (std::size_t i = 0; i < given.size(); i++) {
    EXPECT_EQ(tensor.centroids()[i], float_to_half(given[i]));
  }
}

TEST(TensorCodebookShape, CountsGroupsCodesAndChannels) {
  const auto tensor = make_tensor({4, 3}, 3, 16);
  EXPECT_EQ(tensor.spec().n_groups(0), 4);
  EXPECT_EQ(tensor.n_codes(), 12);
  EXPECT_EQ(tensor.n_channels(), 48);
  EXPECT_EQ(tensor.group(2, 1) - tensor.centroids().data(), (2 * 4 + 1) * 8 * 4);
}

class Encoding : public testing::TestWithParam<CodecSpec> {};

INSTANTIATE_TEST_SUITE_P(Specs, Encoding,
                         testing::Values(CodecSpec{1, 1}, CodecSpec{1, 4}, CodecSpec{2, 3},
                                         CodecSpec{2, 8}, CodecSpec{4, 8}, CodecSpec{8, 8},
                                         CodecSpec{8, 10}, CodecSpec{16, 2}, CodecSpec{16, 12}),
                         [](const auto& spec) { return "spec" + spec.param.name(); });

// Squared distances are sums of group_dim terms in f32, so the chosen centroid may be
// farther than the nearest by the rounding of two such sums.
TEST_P(Encoding, FindsANearestCentroid) {
  const CodecSpec spec = GetParam();
  constexpr int kHeads = 2;
  constexpr int kHeadDim = 16;
  constexpr std::size_t kRows = 37;
  constexpr std::size_t kStride = kHeads * kHeadDim + 1;
  const auto tensor = make_tensor(spec, kHeads, kHeadDim);
  const auto rows = random_floats(kRows * kStride, 3);
  std::vector<std::uint16_t> codes(kRows * tensor.n_codes());
  std::vector<float> decoded(kRows * kStride, -7.0F);
  tensor.encode(rows.data(), kRows, kStride, codes.data());
  tensor.decode(codes.data(), kRows, decoded.data(), kStride);
  for (std::size_t r = 0; r < kRows; r++) {
    EXPECT_EQ(decoded[r * kStride + kStride - 1], -7.0F) << "decode wrote between rows";
    for (int g = 0; g < tensor.n_codes(); g++) {
      const std::size_t at = r * kStride + static_cast<std::size_t>(g) * spec.group_dim;
      const std::vector<float> centroids =
          tensor.group_floats(g / tensor.spec().n_groups(0), g % tensor.spec().n_groups(0));
      double nearest = std::numeric_limits<double>::infinity();
      for (int c = 0; c < spec.n_centroids(); c++) {
        nearest = std::min(
            nearest,
            squared_distance(rows.data() + at,
                             centroids.data() + static_cast<std::size_t>(c) * spec.group_dim,
                             spec.group_dim));
      }
      const double chosen = squared_distance(rows.data() + at, decoded.data() + at, spec.group_dim);
      EXPECT_LE(chosen, nearest * (1 + 2 * (spec.group_dim + 2) * 0x1p-24))
          << "row " << r << ", group " << g;
    }
  }
}

TEST_P(Encoding, ACentroidIsEncodedToItself) {
  const CodecSpec spec = GetParam();
  const auto tensor = make_tensor(spec, 1, 16, 4);
  std::vector<float> row(16);
  std::vector<std::uint16_t> codes(tensor.n_codes());
  for (int c = 0; c < spec.n_centroids(); c++) {
    for (int g = 0; g < tensor.spec().n_groups(0); g++) {
      std::copy_n(tensor.group_floats(0, g).begin() + static_cast<std::size_t>(c) * spec.group_dim,
                  spec.group_dim, row.data() + static_cast<std::size_t>(g) * spec.group_dim);
    }
    tensor.encode(row.data(), 1, 16, codes.data());
    for (int g = 0; g < tensor.spec().n_groups(0); g++) {
      // With few channels two centroids may be the same half floats: the first is right.
      const std::vector<float> centroids = tensor.group_floats(0, g);
      EXPECT_LE(codes[g], c);
      EXPECT_EQ(
          squared_distance(centroids.data() + static_cast<std::size_t>(codes[g]) * spec.group_dim,
                           centroids.data() + static_cast<std::size_t>(c) * spec.group_dim,
                           spec.group_dim),
          0);
    }
  }
}

TEST(EncodingTies, TheLowestIndexWins) {
  // Two centroids of each group are equally near to 0, and one is twice there.
  const auto tensor = TensorCodebook::create({1, 2}, 1, 1, std::vector<float>{3, -1, 1, -1});
  ASSERT_TRUE(tensor.ok());
  const std::vector<float> rows = {0, 1, -1, 2};
  std::vector<std::uint16_t> codes(4);
  tensor->encode(rows.data(), 4, 1, codes.data());
  EXPECT_EQ(codes, (std::vector<std::uint16_t>{1, 2, 1, 0}));
}

TEST(EncodingRows, DoNotInfluenceEachOther) {
  const auto tensor = make_tensor({8, 8}, 2, 64, 5);
  const auto rows = random_floats(50 * 128, 6);
  std::vector<std::uint16_t> together(50 * tensor.n_codes());
  std::vector<std::uint16_t> alone(tensor.n_codes());
  tensor.encode(rows.data(), 50, 128, together.data());
  for (std::size_t r = 0; r < 50; r++) {
    tensor.encode(rows.data() + r * 128, 1, 128, alone.data());
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + r * alone.size()));
  }
}

// Some groups at a time, and only theirs.
TEST(EncodingRows, GroupsMayBeShared) {
  const auto tensor = make_tensor({8, 8}, 2, 64, 5);
  const auto rows = random_floats(5 * 128, 6);
  std::vector<std::uint16_t> together(5 * tensor.n_codes());
  tensor.encode(rows.data(), 5, 128, together.data());
  constexpr std::uint16_t kUntouched = 0xFFFF;
  std::vector<std::uint16_t> shared(together.size(), kUntouched);
  tensor.encode_groups(rows.data(), 5, 128, 3, 6, shared.data());
  for (std::size_t i = 0; i < shared.size(); i++) {
    const int group = static_cast<int>(i) % tensor.n_codes();
    ASSERT_EQ(shared[i], group >= 3 && group < 9 ? together[i] : kUntouched) << i;
  }
  tensor.encode_groups(rows.data(), 5, 128, 9, 7, shared.data());
  tensor.encode_groups(rows.data(), 5, 128, 0, 3, shared.data());
  EXPECT_EQ(shared, together);
}

Codebook make_codebook(int n_layers) {
  Codebook codebook;
  codebook.layers.resize(static_cast<std::size_t>(n_layers));
  for (auto& layer : codebook.layers) {
    layer.k.push_back(make_tensor({8, 8}, 2, 16, 7));
    layer.v.push_back(make_tensor({4, 4}, 2, 16, 8));
  }
  return codebook;
}

// Saved states name it: it must not change with how centroids are kept.
TEST(CodebookIdentity, StaysWhatItWas) {
  EXPECT_EQ(make_codebook(2).identity(), 0x50f3d2ced7a4fb57U);
}

TEST(CodebookIdentity, DoesNotDependOnNames) {
  Codebook codebook = make_codebook(2);
  const auto identity = codebook.identity();
  codebook.origin.name = "other";
  codebook.origin.datasets = {"text"};
  codebook.origin.seed = 9;
  codebook.origin.model_fingerprint = {1, 2};
  codebook.window = 128;
  EXPECT_EQ(codebook.identity(), identity);
  EXPECT_EQ(make_codebook(2).identity(), identity);
}

TEST(CodebookIdentity, DependsOnEveryCentroidShapeAndPlace) {
  const auto identity = make_codebook(2).identity();
  auto values = random_floats(centroid_floats({8, 8}, 2, 16), 7);
  values.back() += 0.25F;
  Codebook changed = make_codebook(2);
  changed.layers[1].k[0] = *TensorCodebook::create({8, 8}, 2, 16, values);
  EXPECT_NE(changed.identity(), identity);

  Codebook swapped = make_codebook(2);
  std::swap(swapped.layers[0].k, swapped.layers[0].v);
  EXPECT_NE(swapped.identity(), identity);

  Codebook exact = make_codebook(2);
  exact.layers[1].v.clear();
  EXPECT_NE(exact.identity(), identity);
  EXPECT_NE(make_codebook(3).identity(), identity);

  // The same values as one head of 32 channels.
  Codebook reshaped = make_codebook(2);
  reshaped.layers[0].k[0] =
      *TensorCodebook::create({8, 8}, 1, 32, random_floats(centroid_floats({8, 8}, 1, 32), 7));
  EXPECT_NE(reshaped.identity(), identity);
}

TEST(CodebookSizes, BitsPerChannelCountExactTensors) {
  Codebook codebook = make_codebook(2);
  EXPECT_DOUBLE_EQ(codebook.bits_per_channel(), 1.0);  // 8/8 and 4/4.
  codebook.layers[0].v.clear();
  EXPECT_DOUBLE_EQ(codebook.bits_per_channel(), (1.0 + 16.0 + 1.0 + 1.0) / 4);
  codebook.layers[0].k.clear();  // Nothing known of that layer any more.
  EXPECT_DOUBLE_EQ(codebook.bits_per_channel(), 1.0);
  EXPECT_DOUBLE_EQ(Codebook{}.bits_per_channel(), 16.0);
}

TEST(CodebookSizes, CentroidBytesAreHalfFloats) {
  const Codebook codebook = make_codebook(3);
  EXPECT_EQ(codebook.centroid_bytes(), 3U * 2 * (2 * 16 * 256 + 2 * 16 * 16));
  EXPECT_EQ(Codebook{}.centroid_bytes(), 0U);
}

// Heads with groups of sizes of their own: each coded as it would be in a codebook of its own.
TEST(TensorCodebook, HeadsOfUnequalRates) {
  const std::vector<int> dims = {2, 64, 8, 32};
  const TensorSpec spec(8, dims, 64);
  EXPECT_FALSE(spec.uniform());
  EXPECT_EQ(spec.name(), "2c8b to 64c8b");
  EXPECT_EQ(spec.n_codes(), 32 + 1 + 8 + 2);
  EXPECT_DOUBLE_EQ(spec.bits_per_channel(), 43.0 * 8 / 256);
  const std::size_t head_floats = std::size_t{64} * 256;
  const std::vector<float> centroids = random_floats(4 * head_floats, 3);
  const TensorCodebook all = TensorCodebook::create(spec, centroids).value();
  const std::size_t n_rows = 9;
  const std::vector<float> rows = random_floats(n_rows * 256, 4);
  std::vector<std::uint16_t> codes(n_rows * 43);
  all.encode(rows.data(), n_rows, 256, codes.data());
  std::vector<std::uint16_t> parts(codes.size());
  all.encode_groups(rows.data(), n_rows, 256, 0, 33, parts.data());
  all.encode_groups(rows.data(), n_rows, 256, 33, 10, parts.data());
  EXPECT_EQ(parts, codes);
  std::vector<float> decoded(rows.size());
  all.decode(codes.data(), n_rows, decoded.data(), 256);
  for (int head = 0; head < 4; head++) {
    const TensorCodebook one =
        TensorCodebook::create({dims[head], 8}, 1, 64,
                               std::span(centroids).subspan(head * head_floats, head_floats))
            .value();
    std::vector<std::uint16_t> want(n_rows * one.n_codes());
    one.encode(rows.data() + head * 64, n_rows, 256, want.data());
    std::vector<float> row(64);
    for (std::size_t r = 0; r < n_rows; r++) {
      for (int i = 0; i < one.n_codes(); i++) {
        ASSERT_EQ(codes[r * 43 + spec.first_code(head) + i], want[r * one.n_codes() + i]);
      }
      one.decode(want.data() + r * one.n_codes(), 1, row.data(), 64);
      ASSERT_TRUE(std::equal(row.begin(), row.end(), decoded.begin() + r * 256 + head * 64));
    }
  }
  Codebook codebook;
  codebook.layers.resize(1);
  codebook.layers[0].k = {all};
  const std::uint64_t identity = codebook.identity();
  codebook.layers[0].k = {
      TensorCodebook::create(TensorSpec(8, {2, 64, 32, 8}, 64), centroids).value()};
  EXPECT_NE(codebook.identity(), identity) << "the sizes are part of what codes mean";
}

// A head without codes is its mean in every row, the others are coded as without it.
TEST(TensorCodebook, HeadsWithoutCodes) {
  const TensorSpec spec(8, {0, 8, 0}, 64);
  EXPECT_FALSE(spec.uniform());
  EXPECT_FALSE(TensorSpec(8, {0}, 64).uniform());
  EXPECT_EQ(spec.name(), "mean to 8c8b");
  EXPECT_EQ(TensorSpec(8, {0, 0}, 64).name(), "mean");
  EXPECT_EQ(spec.n_codes(), 8);
  EXPECT_EQ(spec.first_code(1), 0);
  EXPECT_EQ(spec.first_code(2), 8);
  EXPECT_DOUBLE_EQ(spec.bits_per_channel(), 64.0 / 192);
  const std::vector<float> coded = random_floats(std::size_t{64} * 256, 3);
  const std::vector<float> means = random_floats(128, 5);
  std::vector<float> centroids(means.begin(), means.begin() + 64);
  centroids.insert(centroids.end(), coded.begin(), coded.end());
  centroids.insert(centroids.end(), means.begin() + 64, means.end());
  const TensorCodebook all = TensorCodebook::create(spec, centroids).value();
  const TensorCodebook one = TensorCodebook::create({8, 8}, 1, 64, coded).value();
  const std::size_t n_rows = 5;
  const std::vector<float> rows = random_floats(n_rows * 192, 4);
  std::vector<std::uint16_t> codes(n_rows * 8);
  std::vector<std::uint16_t> want(n_rows * 8);
  all.encode(rows.data(), n_rows, 192, codes.data());
  one.encode(rows.data() + 64, n_rows, 192, want.data());
  EXPECT_EQ(codes, want);
  std::vector<float> decoded(rows.size());
  all.decode(codes.data(), n_rows, decoded.data(), 192);
  std::vector<float> row(64);
  for (std::size_t r = 0; r < n_rows; r++) {
    one.decode(codes.data() + r * 8, 1, row.data(), 64);
    ASSERT_TRUE(std::equal(row.begin(), row.end(), decoded.begin() + r * 192 + 64));
    for (std::size_t d = 0; d < 64; d++) {
      ASSERT_EQ(decoded[r * 192 + d], half_to_float(float_to_half(means[d])));
      ASSERT_EQ(decoded[r * 192 + 128 + d], half_to_float(float_to_half(means[64 + d])));
    }
  }
  centroids.push_back(0);
  EXPECT_FALSE(TensorCodebook::create(spec, centroids).ok());
  centroids.pop_back();
  centroids.back() = std::numeric_limits<float>::infinity();
  const Status status = TensorCodebook::create(spec, centroids).status();
  EXPECT_NE(status.message().find("KV head 2, its mean"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace cqkv
