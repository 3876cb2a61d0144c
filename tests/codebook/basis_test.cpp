// Bases: components and back, distances, coding in them, and what is refused.
#include "cqkv/basis.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "cqkv/codebook.h"

#include "core/half.h"
#include "core/rng.h"

namespace cqkv {
namespace {

std::vector<std::uint16_t> random_halves(std::size_t n, Rng& rng) {
  std::vector<std::uint16_t> halves(n);
  for (std::uint16_t& half : halves) {
    half = float_to_half(static_cast<float>(rng.normal()));
  }
  return halves;
}

std::vector<float> random_floats(std::size_t n, Rng& rng) {
  std::vector<float> floats(n);
  for (float& value : floats) {
    value = static_cast<float>(rng.normal());
  }
  return floats;
}

// Two heads of 16 channels with groups of 4 and 8.
const TensorSpec kSpec(4, {4, 8}, 16);

TensorBasis::Parts key_parts(Rng& rng) {
  TensorBasis::Parts parts;
  parts.metric = random_halves(TensorBasis::metric_size(kSpec), rng);
  for (int i = 0; i < 32; i++) {
    parts.order.push_back(static_cast<std::uint16_t>(i < 16 ? (5 * i + 3) % 16 : 31 - i));
  }
  return parts;
}

TensorBasis::Parts value_parts(Rng& rng) {
  TensorBasis::Parts parts;
  parts.rotation = random_halves(std::size_t{2} * 16 * 16, rng);
  return parts;
}

TEST(Basis, OrdersAndTurnsBack) {
  Rng rng(1);
  const std::vector<float> row = random_floats(32, rng);
  const auto keys = TensorBasis::create(kSpec, key_parts(rng)).value();
  std::vector<float> components(32);
  std::vector<float> back(32);
  keys.to_components(row.data(), components.data());
  for (int i = 0; i < 32; i++) {
    EXPECT_EQ(components[i], row[i / 16 * 16 + keys.order(i / 16)[i % 16]]);
  }
  keys.to_channels(components.data(), back.data());
  EXPECT_EQ(back, row);
}

TEST(Basis, RotatesAndTurnsBack) {
  Rng rng(2);
  const std::vector<float> row = random_floats(32, rng);
  const auto values = TensorBasis::create(kSpec, value_parts(rng)).value();
  std::vector<float> components(32);
  std::vector<float> back(32);
  values.to_components(row.data(), components.data());
  for (int i = 0; i < 32; i++) {
    double want = 0;
    for (int d = 0; d < 16; d++) {
      want += static_cast<double>(half_to_float(values.parts().rotation[i * 16 + d])) *
              static_cast<double>(row[i / 16 * 16 + d]);
    }
    EXPECT_NEAR(components[i], want, 1e-5);
  }
  values.to_channels(components.data(), back.data());
  for (int i = 0; i < 32; i++) {
    EXPECT_NEAR(back[i], row[i], 1e-3);
  }
}

// The code is that of the centroid nearest by the metric, and decodes to it.
TEST(Basis, CodesByTheMetric) {
  Rng rng(3);
  for (const bool keys : {true, false}) {
    const auto basis = TensorBasis::create(kSpec, keys ? key_parts(rng) : value_parts(rng)).value();
    const std::vector<float> centroids = random_floats(std::size_t{32} * 16, rng);
    const auto codebook = TensorCodebook::create(kSpec, centroids, basis).value();
    for (int n = 0; n < 50; n++) {
      const std::vector<float> row = random_floats(32, rng);
      std::vector<float> components(32);
      basis.to_components(row.data(), components.data());
      std::vector<std::uint16_t> codes(6);
      codebook.encode(row.data(), 1, 32, codes.data());
      std::vector<float> decoded(32);
      std::vector<float> decoded_components(32);
      codebook.decode(codes.data(), 1, decoded.data(), 32);
      codebook.decode_components(codes.data(), 1, decoded_components.data(), 32);
      const float* at = components.data();
      std::size_t metric = 0;
      for (int code = 0; code < 6; code++) {
        const int head = code < 4 ? 0 : 1;
        const int group = code - 4 * head;
        const int dim = head == 0 ? 4 : 8;
        const std::vector<float> of_group = codebook.group_floats(head, group);
        const auto distance = [&](int centroid) {
          double sum = 0;
          for (int i = 0; i < dim; i++) {
            double z = keys ? 0 : static_cast<double>(at[i] - of_group[centroid * dim + i]);
            for (int j = 0; j < dim && keys; j++) {
              z += static_cast<double>(half_to_float(basis.parts().metric[metric + i * dim + j])) *
                   static_cast<double>(at[j] - of_group[centroid * dim + j]);
            }
            sum += z * z;
          }
          return sum;
        };
        for (int i = 0; i < 16; i++) {
          EXPECT_GE(distance(i) * 1.02 + 1e-3, distance(codes[code])) << code << " " << i;
        }
        for (int i = 0; i < dim; i++) {
          EXPECT_EQ(decoded_components[head * 16 + group * dim + i],
                    of_group[codes[code] * dim + i]);
        }
        at += dim;
        metric += static_cast<std::size_t>(dim) * dim;
      }
      std::vector<float> back(32);
      basis.to_channels(decoded_components.data(), back.data());
      EXPECT_EQ(back, decoded);
    }
  }
}

TEST(Basis, FitsItsCodebook) {
  Rng rng(6);
  const auto basis = TensorBasis::create(kSpec, key_parts(rng)).value();
  const TensorSpec other(4, {8, 4}, 16);
  const std::vector<float> centroids = random_floats(std::size_t{32} * 16, rng);
  const auto refused = TensorCodebook::create(other, centroids, basis);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
  // Centroids that the metric carries beyond the 16-bit floats would never be nearest.
  const std::vector<float> large(centroids.size(), 60000.0F);
  for (const float sign : {1.0F, -1.0F}) {
    TensorBasis::Parts parts;
    parts.metric.assign(TensorBasis::metric_size(kSpec), float_to_half(2 * sign));
    const auto beyond =
        TensorCodebook::create(kSpec, large, TensorBasis::create(kSpec, parts).value());
    ASSERT_FALSE(beyond.ok());
    EXPECT_EQ(beyond.status().code(), StatusCode::kInvalidArgument);
  }
  // Without one components are the channels.
  const auto plain = TensorCodebook::create(other, centroids).value();
  const std::vector<float> row = random_floats(32, rng);
  std::vector<float> components(32);
  plain.basis().to_components(row.data(), components.data());
  EXPECT_EQ(components, row);
  plain.basis().to_channels(row.data(), components.data());
  EXPECT_EQ(components, row);
}

TEST(Basis, BelongsToTheIdentity) {
  Rng rng(4);
  const std::vector<float> centroids = random_floats(std::size_t{32} * 16, rng);
  const auto identity = [&](const TensorBasis::Parts& parts) {
    Codebook codebook;
    codebook.layers.resize(1);
    codebook.layers[0].k.push_back(
        TensorCodebook::create(kSpec, centroids, TensorBasis::create(kSpec, parts).value())
            .value());
    return codebook.identity();
  };
  TensorBasis::Parts parts = key_parts(rng);
  const std::uint64_t first = identity(parts);
  EXPECT_NE(first, identity({}));
  std::swap(parts.order[0], parts.order[1]);
  EXPECT_NE(first, identity(parts));
  std::swap(parts.order[0], parts.order[1]);
  EXPECT_EQ(first, identity(parts));
  parts.metric.back() ^= 1U;
  EXPECT_NE(first, identity(parts));
}

TEST(Basis, RefusesWhatIsNone) {
  Rng rng(5);
  const auto expect_refused = [](const TensorBasis::Parts& parts, const char* message) {
    const auto basis = TensorBasis::create(kSpec, parts);
    ASSERT_FALSE(basis.ok()) << message;
    EXPECT_EQ(basis.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(basis.status().message().find(message), std::string::npos)
        << basis.status().message();
  };
  TensorBasis::Parts parts = key_parts(rng);
  parts.order[3] = parts.order[4];
  expect_refused(parts, "twice");
  parts.order[3] = 16;
  expect_refused(parts, "want less than 16");
  parts.order.pop_back();
  expect_refused(parts, "got 31 numbers of the order, want 32");
  parts = key_parts(rng);
  parts.metric[7] = float_to_half(std::numeric_limits<float>::infinity());
  expect_refused(parts, "number 7 of the metric is not finite");
  parts.metric.clear();
  parts.rotation = value_parts(rng).rotation;
  expect_refused(parts, "one of them");
  parts.order.clear();
  std::fill_n(parts.rotation.begin() + 256, 16, std::uint16_t{0});
  expect_refused(parts, "the rotation of KV head 1 has no inverse");
  const TensorSpec large({4, 4}, 1, 516);
  const auto basis =
      TensorBasis::create(large, {{}, random_halves(std::size_t{516} * 516, rng), {}});
  EXPECT_FALSE(basis.ok());
}

}  // namespace
}  // namespace cqkv
