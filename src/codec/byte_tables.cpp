// See byte_tables.h.
#include "codec/byte_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/half.h"
#include "core/round_up.h"

namespace cqkv {
namespace {

constexpr float kLargestByte = 127.0F;

// Kernels that look up whole entries are fastest up to so many channels.
constexpr int kMostEntryDim = 8;

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
      most_entry_dim_(order == kernels::TableOrder::kByChannel ? kMaxGroupDim : kMostEntryDim),
      n_channels_(codebook.n_channels()),
      n_entries_(std::max(codebook.spec().n_centroids(), kernels::kByteTableEntries)),
      head_bytes_(static_cast<std::size_t>(codebook.head_dim()) * n_entries_),
      padded_(round_up(static_cast<std::size_t>(codebook.head_dim()), kernels::kChannelLanes)),
      bytes_(head_bytes_ * codebook.n_kv_heads() + kernels::kTablePadding),
      scales_(padded_ * codebook.n_kv_heads()) {
}

ByteTables ByteTables::of(const TensorCodebook& codebook, KvKind kind, const RopeParams* rope,
                          const kernels::KernelTable& kernel) {
  const int code_bits = codebook.spec().code_bits();
  const kernels::TableOrder order = order_for(code_bits, kernel);
  if (kind == KvKind::kValue) {
    return values(codebook, order);
  }
  ByteTables result = keys(codebook, KeyPairs::of(codebook.head_dim(), rope), order);
  if (codebook.basis().has_order() && order == kernels::TableOrder::kByCode) {
    result.take_components(codebook, *kernels::integer_kernels(kernel, code_bits));
  }
  return result;
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

void ByteTables::take_components(const TensorCodebook& codebook,
                                 const kernels::KernelTable& kernel) {
  if (!find_places(codebook)) {
    return;
  }
  for (std::size_t i = 0; i < pairs_.pairs.size(); i++) {
    component_run_.push_back(pair_of(static_cast<int>(2 * i), static_cast<int>(2 * i + 1)));
  }
  if (pairs_.rope) {
    pack_angles(kernel);
  }
}

// False if the components of a pair are apart in some head, or the wrong way round.
bool ByteTables::find_places(const TensorCodebook& codebook) {
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    for (std::size_t i = 0; i < pairs_.pairs.size(); i++) {
      const kernels::ChannelPair pair = component_pairs(kv)[i];
      if (pair.x % 2 != 0 || pair.y != pair.x + 1) {
        places_.clear();
        return false;
      }
      places_.push_back(pair.x / 2);
    }
  }
  return true;
}

void ByteTables::pack_angles(const kernels::KernelTable& kernel) {
  const auto n_pairs = static_cast<int>(pairs_.pairs.size());
  const RopeTable rope(*pairs_.rope);
  const std::size_t n_sines = static_cast<std::size_t>(n_pairs) * kernels::kBlockCells;
  const float* sines =
      rope.centred() + static_cast<std::size_t>(pairs_.n_rotated()) * kernels::kBlockCells;
  const int n_kv_heads = static_cast<int>(places_.size()) / n_pairs;
  angles_.resize(static_cast<std::size_t>(n_kv_heads) * angle_words());
  for (int kv = 0; kv < n_kv_heads; kv++) {
    std::vector<float> centred(2 * n_sines, 0.0F);
    std::fill_n(centred.begin(), n_sines, 1.0F);
    for (int i = 0; i < pairs_.n_turning; i++) {
      const std::size_t from = static_cast<std::size_t>(i) * kernels::kBlockCells;
      const std::size_t to = static_cast<std::size_t>(places(kv)[i]) * kernels::kBlockCells;
      std::copy_n(rope.centred() + from, kernels::kBlockCells, centred.data() + to);
      std::copy_n(sines + from, kernels::kBlockCells, centred.data() + n_sines + to);
    }
    kernel.pack_angles(centred.data(), centred.data() + n_sines, n_pairs, kernels::kAngleUnit,
                       angles_.data() + static_cast<std::size_t>(kv) * angle_words());
  }
}

// The largest centroid of each component.
void ByteTables::set_scales(const TensorCodebook& codebook) {
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    const int dim = codebook.spec().group_dim(kv);
    for (int d = 0; d < codebook.head_dim(); d++) {
      const std::uint16_t* centroid = codebook.group(kv, d / dim) + d % dim;
      float largest = 0.0F;
      for (int i = 0; i < codebook.spec().n_centroids(kv); i++, centroid += dim) {
        largest = std::max(largest, std::abs(half_to_float(*centroid)));
      }
      scales_[kv * padded_ + d] = largest / kLargestByte;
    }
  }
}

void ByteTables::set_bytes(const TensorCodebook& codebook) {
  const bool by_channel = order_ == kernels::TableOrder::kByChannel;
  set_error(codebook);
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    const int dim = codebook.spec().group_dim(kv);
    const int entry = entry_dim(dim);
    const int n = codebook.spec().n_centroids(kv);  // codes are less
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
  const TensorSpec& spec = codebook.spec();
  for (int kv = 0; kv < codebook.n_kv_heads(); kv++) {
    // A head without codes has nothing to tell apart.
    const bool counts = spec.coded(kv) && (spec.group_dim(kv) > 1 || spec.uniform());
    for (int group = 0; counts && group < spec.n_groups(kv); group++) {
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
