// Choosing bases: what the moments of gradients are; that channels that belong together come
// together; that components of values are uncorrelated and groups alike; and that codes lose less.
#include "calibration/bases.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "calibration/rated_tensor.h"
#include "core/half.h"
#include "core/rng.h"

namespace cqkv {
namespace {

constexpr KvShape kShape{2, 16};
constexpr std::size_t kChannels = 32;

TEST(GradientMoments, AreOfDirections) {
  Rng rng(1);
  std::vector<float> gradients(5 * kChannels);
  for (std::size_t i = 0; i < gradients.size(); i++) {
    // Rows of very different sizes, so small that f32 would not hold their squares.
    gradients[i] = static_cast<float>(
        rng.normal() * std::pow(10.0, -25.0 + 3.0 * static_cast<double>(i / kChannels)));
  }
  std::fill_n(gradients.begin() + 2 * kChannels, 16, 0.0F);  // a row of the first head is none
  GradientMoments moments(kShape);
  moments.add(gradients.data(), 3);
  moments.add(gradients.data() + 3 * kChannels, 2);
  for (int head = 0; head < 2; head++) {
    const std::vector<double> got = moments.of_head(head);
    for (std::size_t i = 0; i < 16; i++) {
      for (std::size_t j = 0; j < 16; j++) {
        double want = 0;
        for (std::size_t t = 0; t < 5; t++) {
          const float* g = gradients.data() + t * kChannels + static_cast<std::size_t>(head) * 16;
          double norm = 0;
          for (int d = 0; d < 16; d++) {
            norm += static_cast<double>(g[d]) * static_cast<double>(g[d]);
          }
          const double product = static_cast<double>(g[i]) * static_cast<double>(g[j]);
          want += norm > 0 ? product / norm / (head == 0 ? 4 : 5) : 0;
        }
        EXPECT_NEAR(got[i * 16 + j], want, 1e-6);
      }
    }
  }
}

TEST(GradientMoments, OfNothingAreEvenlySpread) {
  GradientMoments moments(kShape);
  const std::vector<float> zeros(3 * kChannels);
  moments.add(zeros.data(), 3);
  const std::vector<double> got = moments.of_head(1);
  for (std::size_t i = 0; i < 256; i++) {
    EXPECT_EQ(got[i], i % 17 == 0 ? 1.0 / 16 : 0.0);
  }
}

// Rows in which pairs i and i + 4 of the eight of a head say nearly the same.
class BasesTest : public ::testing::Test {
 protected:
  void expect_put_together(const RatedTensor& tensor, const std::vector<std::size_t>& chosen,
                           const std::vector<int>& group_dims) const;

  void make(RopeMode mode) {
    Rng rng(2);
    const auto channel = [mode](int pair, int half) {
      return mode == RopeMode::kNeox ? pair + 8 * half : 2 * pair + half;
    };
    samples.shape = kShape;
    samples.moments = GradientMoments(kShape);
    for (SampleRows* part : {&samples.learned, &samples.held_out}) {
      part->n_rows = part == &samples.learned ? 4000 : 400;
      for (std::size_t t = 0; t < part->n_rows; t++) {
        std::vector<float> row(kChannels);
        std::vector<float> gradient(kChannels);
        std::vector<float> sizes;
        for (int head = 0; head < 2; head++) {
          double size = 0;
          for (int i = 0; i < 16; i++) {
            const int pair = i / 2;
            const std::size_t at = static_cast<std::size_t>(16 * head + channel(pair, i % 2));
            const std::size_t twin = 16 * head + channel(pair - 4, i % 2);
            row[at] = static_cast<float>(
                3 + (pair < 4 ? 2 * rng.normal() : row[twin] - 3 + 0.05 * rng.normal()));
            // The first channels matter more.
            gradient[at] = static_cast<float>(rng.normal() * (pair % 4 == 0 ? 3 : 1));
            size += static_cast<double>(gradient[at]) * static_cast<double>(gradient[at]);
          }
          sizes.push_back(static_cast<float>(size));
        }
        part->rows.insert(part->rows.end(), row.begin(), row.end());
        part->gradients.insert(part->gradients.end(), gradient.begin(), gradient.end());
        for (const int dim : {16}) {
          part->weights[dim].insert(part->weights[dim].end(), sizes.begin(), sizes.end());
        }
        for (int dim = 1; dim < 16; dim *= 2) {  // without bases
          for (std::size_t c = 0; c < kChannels; c += static_cast<std::size_t>(dim)) {
            float sum = 0;
            for (int d = 0; d < dim; d++) {
              sum += gradient[c + d] * gradient[c + d];
            }
            part->weights[dim].push_back(sum);
          }
        }
      }
    }
    samples.moments.add(samples.learned.gradients.data(), samples.learned.n_rows);
  }

  BasisInput input() const {
    BasisInput result;
    result.shape = kShape;
    result.rows = samples.learned.rows.data();
    result.n_rows = samples.learned.n_rows;
    result.weights = samples.learned.weights.at(16);
    result.moments = &samples.moments;
    return result;
  }

  TensorSamples samples;
  ThreadParallelFor parallel{2};
};

TEST_F(BasesTest, KeysThatBelongTogetherShareAGroup) {
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    samples = {};
    make(mode);
    KeyBases keys(input(), mode, parallel);
    for (const int dim : {1, 2, 4}) {
      const auto basis = keys.next(dim, parallel);
      ASSERT_TRUE(basis.ok()) << basis.status().message();
      for (std::size_t i = 0; i < kChannels; i += 2) {
        const auto first = basis->parts().order[i];
        const auto second = basis->parts().order[i + 1];
        EXPECT_EQ(second, first + (mode == RopeMode::kNeox ? 8 : 1)) << "a pair was parted";
        if (dim == 4 && i % 4 == 0) {
          const auto other = basis->parts().order[i + 2];
          EXPECT_EQ(std::abs(first - other), mode == RopeMode::kNeox ? 4 : 8)
              << "twins in different groups";
        }
      }
    }
  }
}

TEST_F(BasesTest, ComponentsOfValuesAreUncorrelated) {
  make(RopeMode::kNormal);
  const ValueBases values(input(), parallel);
  const auto basis = values.of(4);
  ASSERT_TRUE(basis.ok()) << basis.status().message();
  for (std::size_t head = 0; head < 2; head++) {
    std::vector<double> mean(16);
    std::vector<double> products(256);
    double mass = 0;
    std::vector<float> components(kChannels);
    for (std::size_t t = 0; t < samples.learned.n_rows; t++) {
      basis->to_components(samples.learned.rows.data() + t * kChannels, components.data());
      const auto weight = static_cast<double>(samples.learned.weights.at(16)[2 * t + head]);
      mass += weight;
      for (std::size_t i = 0; i < 16; i++) {
        mean[i] += weight * static_cast<double>(components[head * 16 + i]);
        for (std::size_t j = 0; j < 16; j++) {
          products[i * 16 + j] += weight * static_cast<double>(components[head * 16 + i]) *
                                  static_cast<double>(components[head * 16 + j]);
        }
      }
    }
    const auto covariance = [&](std::size_t i, std::size_t j) {
      return products[i * 16 + j] / mass - mean[i] * mean[j] / mass / mass;
    };
    double groups[4] = {1, 1, 1, 1};
    for (std::size_t i = 0; i < 16; i++) {
      groups[i / 4] *= covariance(i, i);
      for (std::size_t j = 0; j < i; j++) {
        EXPECT_LT(std::abs(covariance(i, j)), 0.02 * std::sqrt(covariance(i, i) * covariance(j, j)))
            << i << " " << j;
      }
    }
    // In order of variance the ratio would be 10^10.
    EXPECT_LT(*std::max_element(groups, groups + 4), 100 * *std::min_element(groups, groups + 4));
  }
}

// Each head is coded as by the codebook of its rate.
void BasesTest::expect_put_together(const RatedTensor& tensor,
                                    const std::vector<std::size_t>& chosen,
                                    const std::vector<int>& group_dims) const {
  const auto mixed = assemble(tensor, chosen.data());
  ASSERT_TRUE(mixed.ok()) << mixed.status().message();
  EXPECT_EQ(mixed->spec().group_dims(), group_dims);
  std::vector<std::uint16_t> codes(16);
  std::vector<float> got(kChannels);
  std::vector<float> want(kChannels);
  for (std::size_t t = 0; t < 50; t++) {
    const float* row = samples.held_out.rows.data() + t * kChannels;
    mixed->encode(row, 1, kChannels, codes.data());
    mixed->decode(codes.data(), 1, got.data(), kChannels);
    for (std::size_t head = 0; head < 2; head++) {
      const TensorCodebook& of_rate = tensor.codebooks[chosen[head]];
      std::vector<std::uint16_t> one(static_cast<std::size_t>(of_rate.n_codes()));
      of_rate.encode(row, 1, kChannels, one.data());
      of_rate.decode(one.data(), 1, want.data(), kChannels);
      for (std::size_t d = head * 16; d < head * 16 + 16; d++) {
        EXPECT_EQ(got[d], want[d]) << t << " " << d;
      }
    }
  }
}

// Rates learned in bases against those of neighbouring channels, and what is put together of them.
TEST_F(BasesTest, LoseLessAndArePutTogether) {
  make(RopeMode::kNormal);
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    RateLearning options;
    options.learning.max_iterations = 10;
    const auto better = learn_rates(samples, kind, options, parallel);
    options.bases = false;
    const auto plain = learn_rates(samples, kind, options, parallel);
    ASSERT_TRUE(better.ok() && plain.ok());
    ASSERT_EQ(better->codebooks.size(), 6U) << "1, 2, 4, 8 and 16 channels, no codes";
    for (std::size_t head = 0; head < 2; head++) {
      for (const std::size_t rate : {2U, 3U}) {
        EXPECT_LT(better->heads[head][rate].loss, 0.7 * plain->heads[head][rate].loss)
            << kv_kind_name(kind) << " " << plain->codebooks[rate].spec().name();
      }
    }
    expect_put_together(*better, {3, 1}, {8, 2});
    expect_put_together(*better, {5, 2}, {0, 4});
    expect_put_together(*plain, {4, 5}, {16, 0});
    expect_put_together(*better, {5, 5}, {0, 0});
  }
}

// Without codes a row is the mean of all, weighted as in learning.
TEST_F(BasesTest, WithoutCodesARowIsTheMean) {
  make(RopeMode::kNormal);
  RateLearning options;
  options.learning.max_iterations = 1;
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const auto rated = learn_rates(samples, kind, options, parallel);
    ASSERT_TRUE(rated.ok());
    std::vector<float> got(kChannels);
    rated->codebooks.back().decode(nullptr, 1, got.data(), kChannels);
    for (std::size_t c = 0; c < kChannels; c++) {
      double sum = 0;
      double mass = 0;
      for (std::size_t t = 0; t < samples.learned.n_rows; t++) {
        const double weight = std::sqrt(samples.learned.weights.at(16)[t * 2 + c / 16]);
        sum += weight * samples.learned.rows[t * kChannels + c];
        mass += weight;
      }
      EXPECT_NEAR(got[c], sum / mass, 2e-2 * (1 + std::abs(sum / mass))) << c;
    }
    for (std::size_t head = 0; head < 2; head++) {
      EXPECT_EQ(rated->heads[head].back().bits, 0);
      EXPECT_EQ(rated->heads[head].back().group_dim, 0);
      EXPECT_GT(rated->heads[head].back().loss, rated->heads[head][2].loss);
    }
  }
}

}  // namespace
}  // namespace cqkv
