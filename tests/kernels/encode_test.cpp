// Nearest centroids: exact where distances are, within rounding elsewhere.
#include <algorithm>
#include <vector>

#include "core/half.h"
#include "kernels/kernel_fixture.h"

namespace cqkv::kernels {
namespace {

// Normally distributed, and exact as halves.
ExactBuffer<float> random_centroids(std::size_t n, Rng& rng) {
  const auto halves = random_halves(n, rng);
  ExactBuffer<float> values(n);
  std::transform(halves.begin(), halves.end(), values.begin(), half_to_float);
  return values;
}

class EncodeTest : public KernelTest {
 protected:
  // The codebook [n_centroids, dim] as encode_group wants it, and the codes of rows
  // that are `stride` apart.
  ExactBuffer<std::uint16_t> encode(const ExactBuffer<float>& centroids, int dim,
                                    const ExactBuffer<float>& rows, std::size_t stride,
                                    std::size_t n_rows) {
    const int n = static_cast<int>(centroids.size()) / dim;
    const int padded = (n + kEncodeLanes - 1) / kEncodeLanes * kEncodeLanes;
    ExactBuffer<std::uint16_t> table(static_cast<std::size_t>(padded) * dim);
    std::fill(table.begin(), table.end(), kHalfInfinity);
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < dim; j++) {
        table[j * padded + i] = float_to_half(centroids[i * dim + j]);
      }
    }
    ExactBuffer<std::uint16_t> codes(n_rows);
    kernel().encode_group(table.data(), dim, padded, rows.data(), stride, n_rows, codes.data(), 1);
    return codes;
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, EncodeTest, all_levels(), level_name);

// Or, since halves are few, that of an equal one before it.
TEST_P(EncodeTest, CentroidGetsItsOwnIndex) {
  for (const int dim : {1, 2, 4, 8, 16}) {
    for (const int n : {2, 8, 16, 256, 1024}) {
      Rng rng(dim + n);
      const auto centroids = random_centroids(static_cast<std::size_t>(n) * dim, rng);
      const auto codes = encode(centroids, dim, centroids, dim, n);
      for (int i = 0; i < n; i++) {
        ASSERT_LE(codes[i], i) << dim << " channels, " << n << " centroids";
        ASSERT_TRUE(std::equal(centroids.data() + i * dim, centroids.data() + (i + 1) * dim,
                               centroids.data() + codes[i] * dim))
            << dim << " channels, " << n << " centroids";
      }
    }
  }
}

std::vector<double> distances_to(const ExactBuffer<float>& centroids, int dim, const float* row) {
  std::vector<double> distances(centroids.size() / dim);
  for (std::size_t i = 0; i < centroids.size(); i++) {
    const double difference = double{row[i % dim]} - double{centroids[i]};
    distances[i / dim] += difference * difference;
  }
  return distances;
}

// A code may differ from the nearest one in double only if both distances agree to
// the rounding of dim squares and sums: 2 (dim + 2) eps of the distance.
TEST_P(EncodeTest, FindsTheNearest) {
  for (const int dim : {1, 2, 4, 8, 16}) {
    for (const std::size_t n_rows : {0, 1, 2, 5, 31}) {
      Rng rng(dim);
      const auto centroids = random_centroids(static_cast<std::size_t>(64) * dim, rng);
      const std::size_t stride = dim + 1;
      const auto rows = random_floats(n_rows == 0 ? 0 : (n_rows - 1) * stride + dim, rng);
      const auto codes = encode(centroids, dim, rows, stride, n_rows);
      for (std::size_t r = 0; r < n_rows; r++) {
        const auto distances = distances_to(centroids, dim, rows.data() + r * stride);
        const double nearest = *std::min_element(distances.begin(), distances.end());
        EXPECT_LE(distances[codes[r]], nearest * (1 + 2 * (dim + 2) * kEpsilon))
            << dim << " channels, row " << r;
      }
    }
  }
}

TEST_P(EncodeTest, TiesGoToTheLowestIndex) {
  // Every point twice, and all points alike: distances are exactly equal.
  ExactBuffer<float> pairs(64);
  for (std::size_t i = 0; i < pairs.size(); i++) {
    pairs[i] = static_cast<float>((i * 29 + 7) % 32);
  }
  const auto codes = encode(pairs, 1, pairs, 1, pairs.size());
  for (std::size_t i = 0; i < pairs.size(); i++) {
    ASSERT_EQ(codes[i], std::find(pairs.begin(), pairs.end(), pairs[i]) - pairs.begin());
  }
  const ExactBuffer<float> zeros(static_cast<std::size_t>(256) * 8);
  Rng rng(1);
  const auto rows = random_floats(5 * 8, rng);
  for (const std::uint16_t code : encode(zeros, 8, rows, 8, 5)) {
    ASSERT_EQ(code, 0);
  }
}

// Distances that overflow compare as equal; the code must still be a legal one.
TEST_P(EncodeTest, HugeValuesGetALegalCode) {
  ExactBuffer<float> centroids(3);
  ExactBuffer<float> rows(1);
  rows[0] = 1e30F;
  ASSERT_EQ(encode(centroids, 1, rows, 1, 1)[0], 0);
}

TEST_P(EncodeTest, RowsDoNotDependOnTheirNeighbours) {
  Rng rng(3);
  const auto centroids = random_centroids(static_cast<std::size_t>(256) * 8, rng);
  const auto rows = random_floats(7 * 8, rng);
  const auto together = encode(centroids, 8, rows, 8, 7);
  for (std::size_t r = 0; r < 7; r++) {
    ExactBuffer<float> row(8);
    std::copy_n(rows.data() + r * 8, 8, row.data());
    ASSERT_EQ(encode(centroids, 8, row, 8, 1)[0], together[r]);
  }
}

}  // namespace
}  // namespace cqkv::kernels
