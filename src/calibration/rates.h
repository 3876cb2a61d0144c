// Rates by KV head: what coding a head costs the model at each rate, and which rates to choose
// under a budget. Learning the codebooks of all rates is rated_tensor.h's, the codebook of a budget
// budget.h's.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cqkv/codebook.h"

namespace cqkv {

/// One way to code the keys or the values of one KV head.
struct RateOption {
  int group_dim = 0;  ///< 0: no codes, every row is the head's mean.
  double bits = 0;    ///< Codes of one token.
  double loss = 0;    ///< What it costs; see coding_losses.
};

/// What coding with this codebook costs each KV head, to second order:
///
///     loss[h] = 1 / n_rows  sum over rows t of (sum over channels d of head h of g[t][d]
///     e[t][d])^2
///
/// with g the gradients of the loss by the rows and e what coding changes. It is the Fisher
/// information of the error's direction (paper, equation 4, not only its diagonal).
///
/// @param rows, gradients  [n_rows, n_channels], n_rows at least 1; best rows that the codebook was
///   not learned from.
/// Numerics: sums in f64. May throw std::bad_alloc.
std::vector<double> coding_losses(const TensorCodebook& codebook, const float* rows,
                                  const float* gradients, std::size_t n_rows);

/// Chooses for every head one of its options, so that all together take at most `budget` bits and
/// cost little: from the cheapest options on, always the step with the largest gain a bit that
/// still fits, over the lower convex hull of (bits, loss) of each head.
///
/// @param heads  The options of each head, at least one, in any order.
/// @return the index of each head's option. The cheapest of all if even they do not fit.
std::vector<std::size_t> choose_rates(std::span<const std::vector<RateOption>> heads,
                                      double budget);

}  // namespace cqkv
