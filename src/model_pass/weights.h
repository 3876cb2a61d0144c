// Weights of a linear map, dequantized and packed for products, forwards (by rows of
// activations) or backwards (by rows of gradients).
#pragma once

#include <cstddef>
#include <span>

#include "core/parallel.h"
#include "model_pass/dense.h"
#include "model_pass/model_file.h"

namespace cqkv {

enum class Direction {
  kForward,   ///< y = x W^T:     right-hand side [n_in, n_out].
  kBackward,  ///< dx = dy W:     right-hand side [n_out, n_in].
};

/// One packing to do: rows [first, first + n_rows) of the weight, n_rows 0 = all.
struct PackRequest {
  const GgufTensor* weight = nullptr;
  dense::Packed* packed = nullptr;
  std::size_t first = 0;
  std::size_t n_rows = 0;
};

/// Dequantizes and packs all requests in parallel; buffers are reused.
void pack_weights(std::span<const PackRequest> requests, Direction direction,
                  const dense::Table& table, ParallelFor& parallel);

}  // namespace cqkv
