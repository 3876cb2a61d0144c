// See byte_tables.h.
#include "attention/byte_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/half.h"
#include "core/round_up.h"

namespace cqkv {
namespace {

constexpr float kLargestByte = 127.0F;

// The squared distance of centroid i to the nearest other one that is not its equal.
float nearest_distance(const float* centroids, int n, int dim, int i) {
  float nearest = std::numeric_limits<float>::infinity();
  for (int j = 0; j < n; j++) {
    float distance = 0.0F;
    for (int d = 0; d < dim; d++) {
      const float difference = centroids[j * dim + d] - centroids[i * dim + d];
      distance += difference * difference;
    }
    if (distance > 0.0F) {
      nearest = std::min(nearest, distance);
    }
  }
  return nearest;
}

kernels::ChannelPair pair_of(int x, int y) {
  return {static_cast<std::uint16_t>(x), static_cast<std::uint16_t>(y)};
}

}  // namespace

KeyPairs KeyPairs::of(int head_dim, const RopeParams* rope) {
  KeyPairs result;
  if (rope != nullptr) {
    const bool neox = rope->mode == RopeMode::kNeox;
    result.rope = *rope;
    result.n_turning = RopeFrequencies::of(*rope).n_turning(RopeTable::kBlockCentre);
    for (int i = 0; i < result.n_rotated(); i++) {
      result.pairs.push_back(neox ? pair_of(i, i + result.n_rotated()) : pair_of(2 * i, 2 * i + 1));
    }
  }
  for (int d = 2 * result.n_rotated(); d < head_dim; d += 2) {
    result.pairs.push_back(pair_of(d, std::min(d + 1, head_dim - 1)));
  }
  return result;
}

bool KeyPairs::fit(const RopeParams* other) const {
  return other == nullptr ? !rope.has_value() : rope == *other;
}

ByteTables::ByteTables(const TensorCodebook& codebook, kernels::TableOrder order)
    : order_(order),
      n_channels_(codebook.n_channels()),
      n_entries_(std::max(codebook.spec().n_centroids(), kernels::kByteTableEntries)),
      head_bytes_(static_cast<std::size_t>(codebook.head_dim()) * n_entries_),
      padded_(round_up(static_cast<std::size_t>(codebook.head_dim()), kernels::kChannelLanes)),
      bytes_(head_bytes_ * codebook.n_kv_heads() + kernels::kTablePadding),
      scales_(padded_ * codebook.n_kv_heads()) {
}

ByteTables ByteTables::of(const TensorCodebook& codebook, KvKind kind, const RopeParams* rope,
                          const kernels::KernelTable& kernel) {
  const kernels::TableOrder order = order_for(codebook.spec().code_bits(), kernel);
  return kind == KvKind::kKey ? keys(codebook, KeyPairs::of(codebook.head_dim(), rope), order)
                              : values(codebook, order);
}

ByteTables ByteTables::keys(const TensorCodebook& codebook, KeyPairs pairs,
                            kernels::TableOrder order) {
  ByteTables result(codebook, order);
  result.pairs_ = std::move(pairs);
  result.set_component_pairs(codebook);
  result.set_scales(codebook);
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    float* scales = result.scales_.data() + kv * result.padded_;
    for (std::size_t i = 0; i < result.pairs_.pairs.size(); i++) {
      const kernels::ChannelPair pair = result.component_pairs(kv)[i];
      scales[pair.x] = scales[pair.y] = std::max(scales[pair.x], scales[pair.y]);
    }
  }
  result.set_bytes(codebook);
  return result;
}

ByteTables ByteTables::values(const TensorCodebook& codebook, kernels::TableOrder order) {
  ByteTables result(codebook, order);
  result.set_scales(codebook);
  result.set_bytes(codebook);
  return result;
}

void ByteTables::set_component_pairs(const TensorCodebook& codebook) {
  const TensorBasis& basis = codebook.basis();
  std::vector<std::uint16_t> component(static_cast<std::size_t>(codebook.head_dim()));
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    for (std::size_t i = 0; i < component.size(); i++) {
      component[basis.has_order() ? basis.order(kv)[i] : i] = static_cast<std::uint16_t>(i);
    }
    for (const kernels::ChannelPair& pair : pairs_.pairs) {
      component_pairs_.push_back({component[pair.x], component[pair.y]});
    }
  }
}

// The largest centroid of each component.
void ByteTables::set_scales(const TensorCodebook& codebook) {
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    const int dim = codebook.spec().group_dim(kv);
    for (int d = 0; d < codebook.head_dim(); d++) {
      const std::uint16_t* centroid = codebook.group(kv, d / dim) + d % dim;
      float largest = 0.0F;
      for (int i = 0; i < codebook.spec().n_centroids(); i++, centroid += dim) {
        largest = std::max(largest, std::abs(half_to_float(*centroid)));
      }
      scales_[kv * padded_ + d] = largest / kLargestByte;
    }
  }
}

void ByteTables::set_bytes(const TensorCodebook& codebook) {
  const int n = codebook.spec().n_centroids();
  const bool by_channel = order_ == kernels::TableOrder::kByChannel;
  set_error(codebook);
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    const int dim = codebook.spec().group_dim(kv);
    const int entry = table_dim(dim);
    std::int8_t* head = bytes_.data() + kv * head_bytes_;
    for (int d = 0; d < codebook.head_dim(); d++) {
      const float scale = scales_[kv * padded_ + d];
      const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
      const std::uint16_t* centroid = codebook.group(kv, d / dim) + d % dim;
      std::int8_t* byte =
          head + (by_channel
                      ? static_cast<std::size_t>(d) * n_entries_
                      : static_cast<std::size_t>(d / entry) * n_entries_ * entry + d % entry);
      for (int i = 0; i < n; i++, centroid += dim, byte += by_channel ? 1 : entry) {
        const float rounded = std::nearbyint(half_to_float(*centroid) * inverse);
        *byte = static_cast<std::int8_t>(std::clamp(rounded, -kLargestByte, kLargestByte));
      }
    }
  }
}

void ByteTables::set_error(const TensorCodebook& codebook) {
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    for (int group = 0; group < codebook.spec().n_groups(kv); group++) {
      error_ = std::max(error_, group_error(codebook, kv, group));
    }
  }
}

float ByteTables::group_error(const TensorCodebook& codebook, int kv_head, int group) const {
  constexpr int kSamples = 64;
  const int dim = codebook.spec().group_dim(kv_head);
  const int n = codebook.spec().n_centroids();
  float rounding = 0.0F;
  for (int d = group * dim; d < (group + 1) * dim; d++) {
    rounding += scales(kv_head)[d] * scales(kv_head)[d] / 12.0F;
  }
  const int n_samples = std::min(n, kSamples);
  const std::vector<float> centroids = codebook.group_floats(kv_head, group);
  float distance = 0.0F;
  for (int sample = 0; sample < n_samples; sample++) {
    distance += nearest_distance(centroids.data(), n, dim, sample * n / n_samples) /
                static_cast<float>(n_samples);
  }
  // All centroids alike: there is nothing to tell apart.
  return rounding / distance;
}

}  // namespace cqkv
