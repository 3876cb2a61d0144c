// What a person should know of calibration texts before waiting for a codebook: texts with
// few different tokens, that repeat themselves or that are all of one kind make codebooks
// whose loss looks small and which serve other text badly. Reading texts is text.h.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "cqkv/types.h"

#include "calibration/text.h"

namespace cqkv {

/// Counted, not guessed: what is said of texts follows from these.
struct TextMeasures {
  std::size_t n_tokens = 0;
  std::size_t n_distinct = 0;  ///< Different tokens.
  /// Share of the runs of 8 tokens that stand somewhere before. Articles and programs have
  /// up to 0.2, one line said again and again nearly 1.
  double repeated = 0;
  /// Tokens that two stretches of 2048 have in common, each counted as often as it stands in
  /// both, by 2048: the lower quartile over all pairs of stretches, so that a few odd pages
  /// do not pass for a second kind of text. None with fewer than two stretches.
  std::optional<double> shared_quartile;
};

/// Stretches lie in one file each, its sequences joined; a rest is left out of them.
/// Cost: n_tokens log n_tokens, and 2 * 2048 steps for each pair of stretches.
TextMeasures measure_texts(std::span<const Sequence> sequences);

/// A warning of one line, the gravest that holds, or "": fewer different tokens than
/// `n_centroids`, more than half repeated, or all stretches alike.
std::string text_warning(const TextMeasures& measures, std::size_t n_centroids);

/// A warning if there are few vectors to learn each centroid from, or "".
std::string vectors_warning(std::size_t n_vectors, const CodecSpec& spec);

}  // namespace cqkv
