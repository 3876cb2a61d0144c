// See byte_centroids.h.
#include "codebook/byte_centroids.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"

namespace cqkv {
namespace {

constexpr float kLargestByte = 127.0F;
constexpr std::uint16_t kMinusZero = 0x8000;

// visit(component, place in centroids()) of all centroids of a head.
template <typename Visit>
void for_centroids(const TensorCodebook& codebook, int kv_head, const Visit& visit) {
  const TensorSpec& spec = codebook.spec();
  const int dim = spec.group_dim(kv_head);
  auto place = static_cast<std::size_t>(codebook.group(kv_head, 0) - codebook.centroids().data());
  for (int group = 0; group < spec.n_groups(kv_head); group++) {
    for (int i = 0; i < spec.n_centroids(kv_head); i++) {
      for (int d = 0; d < dim; d++) {
        visit(static_cast<std::size_t>(group) * dim + d, place++);
      }
    }
  }
}

// [head_dim]
std::vector<std::uint16_t> largest_of(const TensorCodebook& codebook, int kv_head) {
  std::vector<float> largest(static_cast<std::size_t>(codebook.head_dim()), 0.0F);
  for_centroids(codebook, kv_head, [&](std::size_t component, std::size_t place) {
    const float magnitude = std::abs(half_to_float(codebook.centroids()[place]));
    largest[component] = std::max(largest[component], magnitude);
  });
  for (std::size_t d = 0; codebook.basis().has_order() && d + 1 < largest.size(); d += 2) {
    largest[d] = largest[d + 1] = std::max(largest[d], largest[d + 1]);
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

}  // namespace

std::uint16_t byte_centroid(std::int8_t byte, std::uint16_t largest) {
  const std::uint16_t half =
      float_to_half(static_cast<float>(byte) * half_to_float(largest) / kLargestByte);
  return half == kMinusZero ? std::uint16_t{0} : half;
}

std::optional<ByteCentroids> byte_centroids(const TensorCodebook& codebook) {
  ByteCentroids result;
  bool same = true;
  for (int kv_head = 0; kv_head < codebook.n_kv_heads() && same; kv_head++) {
    if (!codebook.spec().coded(kv_head)) {
      continue;
    }
    const std::vector<std::uint16_t> largest = largest_of(codebook, kv_head);
    for_centroids(codebook, kv_head, [&](std::size_t component, std::size_t place) {
      const std::uint16_t centroid = codebook.centroids()[place];
      const std::int8_t byte = nearest_byte(centroid, largest[component]);
      same = same && byte_centroid(byte, largest[component]) == centroid;
      result.bytes.push_back(byte);
    });
    result.largest.insert(result.largest.end(), largest.begin(), largest.end());
  }
  return same ? std::optional(std::move(result)) : std::nullopt;
}

Result<TensorCodebook> rounded_to_bytes(const TensorCodebook& codebook) {
  std::vector<float> centroids(codebook.centroids().size());
  std::transform(codebook.centroids().begin(), codebook.centroids().end(), centroids.begin(),
                 half_to_float);
  for (int kv_head = 0; kv_head < codebook.n_kv_heads(); kv_head++) {
    if (!codebook.spec().coded(kv_head)) {
      continue;
    }
    const std::vector<std::uint16_t> largest = largest_of(codebook, kv_head);
    for_centroids(codebook, kv_head, [&](std::size_t component, std::size_t place) {
      const std::int8_t byte = nearest_byte(codebook.centroids()[place], largest[component]);
      centroids[place] = half_to_float(byte_centroid(byte, largest[component]));
    });
  }
  return TensorCodebook::create(codebook.spec(), centroids, codebook.basis());
}

}  // namespace cqkv
