// What one row of logits says about the next token, and how far a second row of the
// same position is from it. Pure arithmetic over a vocabulary; sums over tokens are in
// pair_stats.h.
#pragma once

#include <cstddef>

namespace cqkv::eval {

struct LogitComparison {
  double nll_base = 0;       ///< -log p of the target under the base row, in nats.
  double nll_other = 0;      ///< The same under the other row.
  double kl_divergence = 0;  ///< KL(base || other) over the whole vocabulary, in nats.
  bool same_top = false;     ///< Both rows have their (first) maximum at the same token.
};

/// Compares two rows of `n_vocab` > 0 logits; 0 <= target < n_vocab.
///
/// A row with a NaN or +inf gives a NaN or infinite result; -inf (a forbidden token) is
/// probability zero. Equal rows give a divergence of exactly 0.
/// Numerics: exponentials in f32 (2 ulp), sums of blocks in f32, their total in double.
/// Cost: two passes over both rows. Threads: pure.
LogitComparison compare_logits(const float* base, const float* other, std::size_t n_vocab,
                               std::size_t target);

/// The negative log-likelihood of `target` alone, the same as nll_base above.
double negative_log_likelihood(const float* logits, std::size_t n_vocab, std::size_t target);

}  // namespace cqkv::eval
