// Construction, encoding and decoding of codebooks; see cqkv/codebook.h.
#include "cqkv/codebook.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "core/hash.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

std::string at_group(std::size_t index, const CodecSpec& spec, int n_groups) {
  const std::size_t group = index / (static_cast<std::size_t>(spec.n_centroids()) * spec.group_dim);
  return "KV head " + std::to_string(group / n_groups) + ", group " +
         std::to_string(group % n_groups);
}

int padded_centroids(const CodecSpec& spec) {
  return (spec.n_centroids() + kernels::kEncodeLanes - 1) / kernels::kEncodeLanes *
         kernels::kEncodeLanes;
}

// [group, centroid, group_dim] -> [group, group_dim, padded centroid], as encode_group wants them:
// padding is never nearest.
std::vector<std::uint16_t> transpose(const std::vector<std::uint16_t>& centroids,
                                     const CodecSpec& spec) {
  const int padded = padded_centroids(spec);
  const std::size_t n_in = static_cast<std::size_t>(spec.n_centroids()) * spec.group_dim;
  const std::size_t n_out = static_cast<std::size_t>(padded) * spec.group_dim;
  const std::size_t n_groups = centroids.size() / n_in;
  std::vector<std::uint16_t> out(n_groups * n_out, kHalfInfinity);
  for (std::size_t g = 0; g < n_groups; g++) {
    for (int i = 0; i < spec.n_centroids(); i++) {
      for (int j = 0; j < spec.group_dim; j++) {
        out[g * n_out + static_cast<std::size_t>(j) * padded + i] =
            centroids[g * n_in + static_cast<std::size_t>(i) * spec.group_dim + j];
      }
    }
  }
  return out;
}

}  // namespace

Result<TensorCodebook> TensorCodebook::create(CodecSpec spec, int n_kv_heads, int head_dim,
                                              std::span<const float> centroids) {
  CQKV_RETURN_IF_ERROR(spec.check(head_dim));
  if (spec.exact()) {
    return invalid_argument("codebook: configuration 'exact' has no centroids");
  }
  if (n_kv_heads <= 0) {
    return invalid_argument("codebook: got " + std::to_string(n_kv_heads) +
                            " KV heads, want at least 1");
  }
  const std::size_t want = static_cast<std::size_t>(n_kv_heads) * head_dim * spec.n_centroids();
  if (centroids.size() != want) {
    return invalid_argument(
        "codebook " + spec.name() + ": got " + std::to_string(centroids.size()) +
        " centroid values, want KV heads * head size * 2^bits = " + std::to_string(want));
  }
  TensorCodebook result;
  result.spec_ = spec;
  result.n_kv_heads_ = n_kv_heads;
  result.head_dim_ = head_dim;
  result.centroids_.resize(centroids.size());
  for (std::size_t i = 0; i < centroids.size(); i++) {
    result.centroids_[i] = float_to_half(centroids[i]);
    if (!std::isfinite(half_to_float(result.centroids_[i]))) {
      return invalid_argument(
          "codebook " + spec.name() + ": centroid value " + std::to_string(centroids[i]) + " (" +
          at_group(i, spec, head_dim / spec.group_dim) + ") is not finite as a 16-bit float");
    }
  }
  result.transposed_ = transpose(result.centroids_, spec);
  return result;
}

std::vector<float> TensorCodebook::group_floats(int kv_head, int group) const {
  std::vector<float> floats(group_values());
  kernels::active().half_to_float_n(this->group(kv_head, group), floats.size(), floats.data());
  return floats;
}

void TensorCodebook::encode(const float* rows, std::size_t n_rows, std::size_t row_stride,
                            std::uint16_t* codes) const {
  encode_groups(rows, n_rows, row_stride, 0, n_codes(), codes);
}

void TensorCodebook::encode_groups(const float* rows, std::size_t n_rows, std::size_t row_stride,
                                   int first, int n, std::uint16_t* codes) const {
  const auto& kernel = kernels::active();
  const int padded = padded_centroids(spec_);
  const std::size_t table_halves = static_cast<std::size_t>(padded) * spec_.group_dim;
  for (int g = first; g < first + n; g++) {
    kernel.encode_group(transposed_.data() + g * table_halves, spec_.group_dim, padded,
                        rows + static_cast<std::size_t>(g) * spec_.group_dim, row_stride, n_rows,
                        codes + g, static_cast<std::size_t>(n_codes()));
  }
}

void TensorCodebook::decode(const std::uint16_t* codes, std::size_t n_rows, float* rows,
                            std::size_t row_stride) const {
  const auto& kernel = kernels::active();
  const auto dim = static_cast<std::size_t>(spec_.group_dim);
  const auto n_groups = static_cast<std::size_t>(n_codes());
  // Some groups at a time, since they are short.
  constexpr std::size_t kMaxHalves = 256;
  const std::size_t most_groups = kMaxHalves / dim;
  for (std::size_t r = 0; r < n_rows; r++) {
    for (std::size_t first = 0; first < n_groups; first += most_groups) {
      const std::size_t n = std::min(most_groups, n_groups - first);
      std::uint16_t halves[kMaxHalves];
      for (std::size_t g = first; g < first + n; g++) {
        std::copy_n(centroids_.data() + g * group_values() + codes[r * n_groups + g] * dim, dim,
                    halves + (g - first) * dim);
      }
      kernel.half_to_float_n(halves, n * dim, rows + r * row_stride + first * dim);
    }
  }
}

std::uint64_t Codebook::identity() const {
  std::uint64_t hash = hash_bytes("cqkv", 4);
  for (const auto& layer : layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const TensorCodebook* tensor = layer.get(kind);
      const std::int32_t shape[4] = {
          tensor == nullptr ? 0 : tensor->spec().group_dim,
          tensor == nullptr ? 0 : tensor->spec().code_bits,
          tensor == nullptr ? 0 : tensor->n_kv_heads(),
          tensor == nullptr ? 0 : tensor->head_dim(),
      };
      hash = hash_bytes(shape, sizeof(shape), hash);
      if (tensor != nullptr) {
        // As 32-bit floats, by which codebooks have always been known.
        std::vector<float> values(tensor->centroids().size());
        kernels::active().half_to_float_n(tensor->centroids().data(), values.size(), values.data());
        hash = hash_bytes(values.data(), values.size() * sizeof(float), hash);
      }
    }
  }
  return hash;
}

double Codebook::bits_per_channel() const {
  double bits = 0;
  double channels = 0;
  for (const auto& layer : layers) {
    const TensorCodebook* k = layer.get(KvKind::kKey);
    const TensorCodebook* v = layer.get(KvKind::kValue);
    const TensorCodebook* known = k != nullptr ? k : v;
    if (known == nullptr) {
      continue;
    }
    for (const TensorCodebook* side : {k, v}) {
      const int n = side != nullptr ? side->n_channels() : known->n_channels();
      channels += n;
      bits += n * (side != nullptr ? side->spec().bits_per_channel() : 16.0);
    }
  }
  return channels == 0 ? 16.0 : bits / channels;
}

std::size_t Codebook::centroid_bytes() const {
  std::size_t bytes = 0;
  for (const auto& layer : layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      if (const TensorCodebook* tensor = layer.get(kind)) {
        bytes += tensor->centroids().size_bytes();
      }
    }
  }
  return bytes;
}

}  // namespace cqkv
