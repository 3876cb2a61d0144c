// Centroids as bytes: rounding is near, says the same twice, and is found again; what attention
// reads of a rounded codebook are those bytes.
#include "codebook/byte_centroids.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "codec/byte_tables.h"
#include "core/half.h"
#include "core/rng.h"
#include "support/codebooks.h"

namespace cqkv {
namespace {

using testing::random_basis;
using testing::random_mixed_tensor;
using testing::random_tensor;

TensorCodebook in_basis(const TensorCodebook& plain, KvKind kind) {
  std::vector<float> centroids(plain.centroids().size());
  std::transform(plain.centroids().begin(), plain.centroids().end(), centroids.begin(),
                 half_to_float);
  return TensorCodebook::create(plain.spec(), centroids, random_basis(plain.spec(), kind, 5, 1))
      .value();
}

std::vector<std::uint16_t> halves(const TensorCodebook& codebook) {
  return {codebook.centroids().begin(), codebook.centroids().end()};
}

std::vector<TensorCodebook> some_tensors() {
  std::vector<TensorCodebook> tensors;
  tensors.push_back(random_tensor({4, 8}, 2, 16, 1));
  tensors.push_back(random_mixed_tensor(8, {2, 0, 16, 1}, 16, 2));
  tensors.push_back(in_basis(random_mixed_tensor(8, {2, 0, 16, 4}, 16, 3), KvKind::kKey));
  tensors.push_back(in_basis(random_mixed_tensor(8, {8, 8, 0, 16}, 16, 4), KvKind::kValue));
  return tensors;
}

TEST(ByteCentroids, RoundingIsNearAndFoundAgain) {
  for (const TensorCodebook& tensor : some_tensors()) {
    EXPECT_FALSE(byte_centroids(tensor).has_value());
    const TensorCodebook rounded = rounded_to_bytes(tensor).value();
    EXPECT_EQ(rounded.spec(), tensor.spec());
    ASSERT_EQ(rounded.centroids().size(), tensor.centroids().size());
    for (std::size_t i = 0; i < tensor.centroids().size(); i++) {
      // Half a step of the largest of some thousand normal numbers, and half a last place.
      EXPECT_NEAR(half_to_float(rounded.centroids()[i]), half_to_float(tensor.centroids()[i]),
                  5.0 / 127 / 2 + 5.0 / 2048);
    }
    EXPECT_TRUE(byte_centroids(rounded).has_value());
    EXPECT_EQ(halves(rounded_to_bytes(rounded).value()), halves(rounded));
  }
}

// Spelled out for one group after the other.
TEST(ByteCentroids, AreTheCentroids) {
  for (const TensorCodebook& tensor : some_tensors()) {
    const TensorCodebook rounded = rounded_to_bytes(tensor).value();
    const ByteCentroids bytes = byte_centroids(rounded).value();
    const std::int8_t* next = bytes.bytes.data();
    const std::uint16_t* largest = bytes.largest.data();
    for (int head = 0; head < rounded.n_kv_heads(); head++) {
      const int dim = rounded.spec().group_dim(head);
      if (!rounded.spec().coded(head)) {
        continue;
      }
      for (int group = 0; group < rounded.spec().n_groups(head); group++) {
        const std::vector<float> floats = rounded.group_floats(head, group);
        for (std::size_t i = 0; i < floats.size(); i++) {
          const float scale = half_to_float(largest[group * dim + static_cast<int>(i) % dim]);
          EXPECT_NEAR(floats[i], scale * static_cast<float>(*next++) / 127, scale / 2048);
        }
      }
      largest += rounded.head_dim();
    }
    EXPECT_EQ(next, bytes.bytes.data() + bytes.bytes.size());
    EXPECT_EQ(largest, bytes.largest.data() + bytes.largest.size());
  }
}

// Zeros are positive, a component that is always 0 has no scale, and numbers without a normal
// 16-bit float are found again too.
TEST(ByteCentroids, ZerosAndSmallNumbers) {
  std::vector<float> values;
  Rng rng(7);
  for (int i = 0; i < 64; i++) {
    values.push_back(i % 4 == 0 ? 0.0F : static_cast<float>(rng.normal() * 1e-7));
  }
  const TensorCodebook tensor = TensorCodebook::create({4, 4}, 1, 4, values).value();
  const TensorCodebook rounded = rounded_to_bytes(tensor).value();
  const auto bytes = byte_centroids(rounded);
  ASSERT_TRUE(bytes.has_value());
  EXPECT_EQ(bytes->largest[0], 0);
  for (const std::uint16_t half : rounded.centroids()) {
    EXPECT_NE(half, 0x8000);
  }
  EXPECT_EQ(byte_centroid(-127, 0x3C00), 0xBC00) << "the largest itself";
  EXPECT_EQ(byte_centroid(-1, 0x0001), 0) << "no negative zero";
}

// The tables of a rounded codebook have the bytes of the file, so nothing is rounded twice.
TEST(ByteCentroids, AreThoseOfAttention) {
  const TensorCodebook rounded =
      rounded_to_bytes(in_basis(random_mixed_tensor(8, {4, 8}, 16, 3), KvKind::kValue)).value();
  const ByteCentroids bytes = byte_centroids(rounded).value();
  const ByteTables tables = ByteTables::values(rounded, kernels::TableOrder::kByChannel);
  const std::int8_t* next = bytes.bytes.data();
  for (int head = 0; head < 2; head++) {
    const int dim = rounded.spec().group_dim(head);
    for (int group = 0; group < rounded.spec().n_groups(head); group++) {
      for (int i = 0; i < 256; i++) {
        for (int d = 0; d < dim; d++) {
          const std::int8_t* channel = tables.table(head) + (group * dim + d) * 256;
          ASSERT_EQ(channel[i], *next++) << head << " " << group << " " << i << " " << d;
        }
      }
    }
  }
}

}  // namespace
}  // namespace cqkv
