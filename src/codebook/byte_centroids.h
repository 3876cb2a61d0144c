// Centroids as bytes: files half as large. Attention reads centroids as bytes anyway, so that a
// codebook rounded to bytes costs it nothing more (codec/byte_tables.h rounds to the same ones).
// Here is what such centroids are; how they are written is codebook_file's.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

namespace cqkv {

/// The centroids of the heads that have codes:
///
///     centroid[d] = byte / 127 * largest[d], rounded to a 16-bit float
struct ByteCentroids {
  std::vector<std::int8_t> bytes;      ///< As TensorCodebook::centroids(), -127 to 127.
  std::vector<std::uint16_t> largest;  ///< [head, head_dim], 16-bit floats, not negative.
};

/// One of them. A zero is positive.
std::uint16_t byte_centroid(std::int8_t byte, std::uint16_t largest);

/// All of them: the centroids of the heads with codes as 16-bit floats, in their order. The sizes
/// must be those of the spec. May throw std::bad_alloc.
std::vector<std::uint16_t> to_halves(const TensorSpec& spec, const ByteCentroids& bytes);

/// The centroids of the tensor as bytes, if they all are such to the bit. `largest` is the largest
/// magnitude of a component over its group's centroids; where keys have an order, of the two
/// components of a pair, since attention turns pairs.
std::optional<ByteCentroids> byte_centroids(const TensorCodebook& codebook);

/// The tensor with the nearest such centroids. Heads without codes keep their means.
///
/// @return the errors of TensorCodebook::create. May throw std::bad_alloc.
Result<TensorCodebook> rounded_to_bytes(const TensorCodebook& codebook);

}  // namespace cqkv
