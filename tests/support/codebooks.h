// Small codebooks with random centroids, for tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cqkv/codebook.h"

#include "core/half.h"
#include "core/rng.h"

namespace cqkv::testing {

inline TensorCodebook random_tensor(CodecSpec spec, int n_kv_heads, int head_dim,
                                    std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<std::size_t>(n_kv_heads) * head_dim * spec.n_centroids());
  for (auto& value : values) {
    value = static_cast<float>(rng.normal());
  }
  return TensorCodebook::create(spec, n_kv_heads, head_dim, values).value();
}

/// Nearly lossless: every channel by itself in 4096 levels between -range and range.
inline TensorCodebook grid_tensor(int n_kv_heads, int head_dim, float range) {
  constexpr CodecSpec kSpec{1, 12};
  const int n_levels = kSpec.n_centroids();
  std::vector<float> values(static_cast<std::size_t>(n_kv_heads) * head_dim * n_levels);
  for (std::size_t i = 0; i < values.size(); i++) {
    const auto level = static_cast<float>(i % n_levels);
    values[i] = range * (2.0F * level / static_cast<float>(n_levels - 1) - 1.0F);
  }
  return TensorCodebook::create(kSpec, n_kv_heads, head_dim, values).value();
}

/// KV heads with groups of the sizes given; 0: without codes.
inline TensorCodebook random_mixed_tensor(int code_bits, const std::vector<int>& group_dims,
                                          int head_dim, std::uint64_t seed) {
  Rng rng(seed);
  const TensorSpec spec(code_bits, group_dims, head_dim);
  std::vector<float> values;
  for (int head = 0; head < spec.n_kv_heads(); head++) {
    for (std::size_t i = 0; i < spec.n_centroid_values(head); i++) {
      values.push_back(static_cast<float>(rng.normal()));
    }
  }
  return TensorCodebook::create(spec, values).value();
}

/// A basis of anything: keys in a random order with random metrics near plain ones; values in a
/// random rotation near none, so that turning back does not blow errors up. Above 0, `partner`
/// keeps every channel beside the one so many channels on, as those of RoPE pairs are learned: 1,
/// or half of the head.
inline TensorBasis random_basis(const TensorSpec& spec, KvKind kind, std::uint64_t seed,
                                int partner = 0) {
  Rng rng(seed);
  TensorBasis::Parts parts;
  const auto head_dim = static_cast<std::size_t>(spec.head_dim());
  const auto n_channels = static_cast<std::size_t>(spec.n_channels());
  const auto near_identity = [&](std::vector<std::uint16_t>& matrix, std::size_t dim) {
    for (std::size_t i = 0; i < dim * dim; i++) {
      const double value =
          (i / dim == i % dim ? 1 : 0) + 0.4 * rng.normal() / std::sqrt(static_cast<double>(dim));
      matrix.push_back(float_to_half(static_cast<float>(value)));
    }
  };
  for (int head = 0; head < spec.n_kv_heads(); head++) {
    if (kind == KvKind::kValue) {
      near_identity(parts.rotation, head_dim);
    }
    for (int g = 0; g < spec.n_codes(head) && kind == KvKind::kKey; g++) {
      near_identity(parts.metric, static_cast<std::size_t>(spec.group_dim(head)));
    }
  }
  // Places are shuffled one by one, or two by two.
  const std::size_t step = partner > 0 ? 2 : 1;
  parts.order.resize(kind == KvKind::kKey ? n_channels : 0);
  for (std::size_t i = 0; i < parts.order.size(); i += step) {
    const std::size_t place = i % head_dim / step;
    const std::size_t other = i / head_dim * head_dim + rng.below(place + 1) * step;
    const std::size_t channel = partner > 1 ? place : i % head_dim;
    for (std::size_t j = 0; j < step; j++) {
      parts.order[i + j] = parts.order[other + j];
      parts.order[other + j] =
          static_cast<std::uint16_t>(channel + j * static_cast<std::size_t>(partner));
    }
  }
  return TensorBasis::create(spec, std::move(parts)).value();
}

/// The same centroids, of the components of a random basis.
inline TensorCodebook with_basis(const TensorCodebook& tensor, KvKind kind, std::uint64_t seed) {
  std::vector<float> centroids;
  for (const std::uint16_t half : tensor.centroids()) {
    centroids.push_back(half_to_float(half));
  }
  return TensorCodebook::create(tensor.spec(), centroids, random_basis(tensor.spec(), kind, seed))
      .value();
}

/// All layers alike; an exact spec leaves its side empty.
inline Codebook random_codebook(int n_layers, CodecSpec k, CodecSpec v, int n_kv_heads,
                                int head_dim) {
  Codebook codebook;
  codebook.origin.name = "random " + k.name() + " " + v.name();
  codebook.origin.architecture = "llama";
  codebook.origin.model_name = "a model";
  codebook.origin.license = "mit";
  codebook.origin.weighting = "uniform";
  codebook.origin.tool_version = "0";
  codebook.origin.datasets = {"one.txt", "two.jsonl"};
  codebook.origin.n_tokens = 32768;
  codebook.origin.ctx_size = 2048;
  codebook.origin.seed = 0xFEDCBA9876543210ULL;
  codebook.origin.held_out = {2048, 0.125F, 0.375F};
  for (int il = 0; il < n_layers; il++) {
    LayerCodebook layer;
    if (!k.exact()) {
      layer.k.push_back(random_tensor(k, n_kv_heads, head_dim, 2ULL * il));
    }
    if (!v.exact()) {
      layer.v.push_back(random_tensor(v, n_kv_heads, head_dim, 2ULL * il + 1));
    }
    codebook.layers.push_back(std::move(layer));
    codebook.origin.model_fingerprint.push_back(0xABCDEF0000000000ULL + il);
  }
  return codebook;
}

}  // namespace cqkv::testing
