// The kernels that only move values: decoding, transposition, half floats. All exact.
#include <cstring>

#include "core/half.h"
#include "kernels/kernel_fixture.h"

namespace cqkv::kernels {
namespace {

class DecodeTest : public KernelTest {};

INSTANTIATE_TEST_SUITE_P(Levels, DecodeTest, all_levels(), level_name);

void expect_decoded_channels(const KernelTable& kernel, int dim, int n_centroids) {
  Rng rng(dim * 10000 + n_centroids);
  const auto centroids = random_halves(static_cast<std::size_t>(n_centroids) * dim, rng);
  auto codes = random_codes(kBlockCells, n_centroids, rng);
  codes[kBlockCells - 1] = static_cast<std::uint16_t>(n_centroids - 1);
  ExactBuffer<float> tile(static_cast<std::size_t>(dim) * kBlockCells);
  kernel.decode_channels(centroids.data(), dim, codes.data(), tile.data());
  for (int at = 0; at < dim * kBlockCells; at++) {
    ASSERT_EQ(tile[at], half_to_float(centroids[codes[at % kBlockCells] * dim + at / kBlockCells]))
        << dim << " channels, " << n_centroids << " centroids, at " << at;
  }
}

TEST_P(DecodeTest, ChannelsForEveryGroupDimAndCodeBits) {
  for (const int dim : {1, 2, 4, 8, 16, 32, 64}) {
    for (const int n_centroids : {2, 16, 256, 4096}) {
      expect_decoded_channels(kernel(), dim, n_centroids);
    }
  }
}

TEST_P(DecodeTest, TokensLeaveTheGapAlone) {
  for (const int dim : {1, 2, 4, 8, 16, 32, 64}) {
    Rng rng(dim);
    const auto centroids = random_halves(static_cast<std::size_t>(256) * dim, rng);
    const auto codes = random_codes(kBlockCells, 256, rng);
    const int stride = dim + 3;
    ExactBuffer<float> tile(static_cast<std::size_t>(kBlockCells - 1) * stride + dim);
    std::fill(tile.begin(), tile.end(), 77.0F);
    kernel().decode_tokens(centroids.data(), dim, codes.data(), tile.data(), stride);
    for (std::size_t i = 0; i < tile.size(); i++) {
      const std::size_t t = i / stride;
      const int j = static_cast<int>(i % stride);
      ASSERT_EQ(tile[i], j < dim ? half_to_float(centroids[codes[t] * dim + j]) : 77.0F)
          << dim << " at " << i;
    }
  }
}

TEST_P(DecodeTest, TransposesAnyNumberOfChannels) {
  for (const int n_channels : {1, 3, 4, 7, 24, 64, 80}) {
    Rng rng(n_channels);
    const int stride = n_channels + 1;
    const auto rows =
        random_floats(static_cast<std::size_t>(kBlockCells - 1) * stride + n_channels, rng);
    ExactBuffer<float> tile(static_cast<std::size_t>(n_channels) * kBlockCells);
    kernel().transpose_rows(rows.data(), stride, n_channels, tile.data());
    for (int j = 0; j < n_channels; j++) {
      for (int t = 0; t < kBlockCells; t++) {
        ASSERT_EQ(tile[j * kBlockCells + t], rows[t * stride + j]) << n_channels;
      }
    }
  }
}

// Signalling NaN are left out: hardware quiets them.
TEST_P(DecodeTest, WidensAllHalves) {
  ExactBuffer<std::uint16_t> in(65536);
  for (std::size_t i = 0; i < in.size(); i++) {
    in[i] = static_cast<std::uint16_t>(i);
  }
  ExactBuffer<float> out(in.size());
  kernel().half_to_float_n(in.data(), in.size(), out.data());
  for (std::size_t i = 0; i < in.size(); i++) {
    const bool signalling = (i & 0x7C00U) == 0x7C00U && (i & 0x3FFU) != 0 && (i & 0x200U) == 0;
    if (!signalling) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]),
                std::bit_cast<std::uint32_t>(half_to_float(in[i])))
          << std::hex << i;
    }
  }
}

TEST_P(DecodeTest, WidensAnyCount) {
  for (const std::size_t n : {0, 1, 2, 3, 7, 8, 9, 31, 33}) {
    ExactBuffer<std::uint16_t> in(n);
    for (std::size_t i = 0; i < n; i++) {
      in[i] = float_to_half(1.5F + static_cast<float>(i));
    }
    ExactBuffer<float> out(n);
    kernel().half_to_float_n(in.data(), n, out.data());
    for (std::size_t i = 0; i < n; i++) {
      ASSERT_EQ(out[i], 1.5F + static_cast<float>(i)) << n;
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
