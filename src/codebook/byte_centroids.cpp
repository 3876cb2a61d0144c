// See byte_centroids.h.
#include "codebook/byte_centroids.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/half.h"

namespace cqkv {
namespace {

constexpr float kLargestByte = 127.0F;
constexpr std::uint16_t kMinusZero = 0x8000;

// visit(component, place in TensorCodebook::centroids()) of all centroids of the heads that have
// codes, in their order. Components are numbered over these heads.
template <typename Visit>
void for_centroids(const TensorSpec& spec, const Visit& visit) {
  std::size_t place = 0;
  std::size_t component = 0;  // the first of the group
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    if (!spec.coded(kv_head)) {
      place += spec.n_centroid_values(kv_head);
      continue;
    }
    const int dim = spec.group_dim(kv_head);
    for (int group = 0; group < spec.n_groups(kv_head); group++, component += dim) {
      for (int i = 0; i < spec.n_centroids(kv_head) * dim; i++) {
        visit(component + i % dim, place++);
      }
    }
  }
}

// ByteCentroids::largest.
std::vector<std::uint16_t> largest_of(const TensorCodebook& codebook) {
  const auto head_dim = static_cast<std::size_t>(codebook.head_dim());
  std::vector<float> largest(head_dim * codebook.n_kv_heads(), 0.0F);
  std::size_t n_components = 0;
  for_centroids(codebook.spec(), [&](std::size_t component, std::size_t place) {
    const float magnitude = std::abs(half_to_float(codebook.centroids()[place]));
    largest[component] = std::max(largest[component], magnitude);
    n_components = component + 1;
  });
  largest.resize(n_components);
  for (std::size_t d = 0; codebook.basis().has_order() && d < largest.size(); d++) {
    if (d % head_dim % 2 == 1) {
      largest[d - 1] = largest[d] = std::max(largest[d - 1], largest[d]);
    }
  }
  std::vector<std::uint16_t> halves(largest.size());
  std::transform(largest.begin(), largest.end(), halves.begin(), float_to_half);
  return halves;
}

std::int8_t nearest_byte(std::uint16_t centroid, std::uint16_t largest) {
  if (largest == 0) {
    return 0;
  }
  return static_cast<std::int8_t>(
      std::nearbyint(half_to_float(centroid) * kLargestByte / half_to_float(largest)));
}

ByteCentroids nearest_bytes(const TensorCodebook& codebook) {
  ByteCentroids result{{}, largest_of(codebook)};
  for_centroids(codebook.spec(), [&](std::size_t component, std::size_t place) {
    result.bytes.push_back(nearest_byte(codebook.centroids()[place], result.largest[component]));
  });
  return result;
}

}  // namespace

std::uint16_t byte_centroid(std::int8_t byte, std::uint16_t largest) {
  const std::uint16_t half =
      float_to_half(static_cast<float>(byte) * half_to_float(largest) / kLargestByte);
  return half == kMinusZero ? std::uint16_t{0} : half;
}

std::vector<std::uint16_t> to_halves(const TensorSpec& spec, const ByteCentroids& bytes) {
  std::vector<std::uint16_t> halves;
  halves.reserve(bytes.bytes.size());
  for_centroids(spec, [&](std::size_t component, std::size_t /*place*/) {
    halves.push_back(byte_centroid(bytes.bytes[halves.size()], bytes.largest[component]));
  });
  return halves;
}

std::optional<ByteCentroids> byte_centroids(const TensorCodebook& codebook) {
  ByteCentroids bytes = nearest_bytes(codebook);
  const std::vector<std::uint16_t> halves = to_halves(codebook.spec(), bytes);
  bool same = true;
  auto next = halves.begin();
  for_centroids(codebook.spec(), [&](std::size_t /*component*/, std::size_t place) {
    same = same && *next++ == codebook.centroids()[place];
  });
  return same ? std::optional(std::move(bytes)) : std::nullopt;
}

Result<TensorCodebook> rounded_to_bytes(const TensorCodebook& codebook) {
  std::vector<float> centroids(codebook.centroids().size());
  std::transform(codebook.centroids().begin(), codebook.centroids().end(), centroids.begin(),
                 half_to_float);
  const std::vector<std::uint16_t> halves = to_halves(codebook.spec(), nearest_bytes(codebook));
  auto next = halves.begin();
  for_centroids(codebook.spec(), [&](std::size_t /*component*/, std::size_t place) {
    centroids[place] = half_to_float(*next++);
  });
  return TensorCodebook::create(codebook.spec(), centroids, codebook.basis());
}

}  // namespace cqkv
