// How much the exact window keeps (WindowSpec) and how many exact rows that takes for a cache
// (WindowPool). Which rows those are is exact_window.h, what a row is exact_row.h.
#pragma once

#include <cstddef>
#include <optional>

#include "cqkv/codebook.h"

namespace cqkv {

/// Largest window, number of sinks and number of spare rows.
inline constexpr int kMaxWindow = 1 << 20;

/// What is kept exactly; window and sinks 0: nothing.
struct WindowSpec {
  int window = 0;  ///< Most recent tokens.
  int sinks = 0;   ///< First tokens of a sequence.
  /// Rows of a sequence beyond its window and sinks, kept for when tokens are taken back;
  /// nothing: as many as weigh a quarter of the codes. Never below kRollback.
  std::optional<int> spare = std::nullopt;

  /// Tokens after which the window begins whose rows are kept in any case, so that taking back
  /// that many tokens (a short draft) leaves the window whole.
  static constexpr int kRollback = 16;

  bool enabled() const { return window > 0 || sinks > 0; }

  /// Tokens up to the newest that keep their row whatever happens.
  int kept() const { return window == 0 ? 0 : window + kRollback; }

  /// Rows that one sequence needs.
  std::size_t rows_per_sequence() const {
    return static_cast<std::size_t>(kept()) + static_cast<std::size_t>(sinks);
  }

  bool operator==(const WindowSpec&) const = default;
};

/// What a user gives in the place of a codebook's own window and of the default spare.
struct WindowOverride {
  std::optional<int> window;
  std::optional<int> sinks;
  std::optional<int> spare;

  /// `other` wherever nothing is given here.
  WindowOverride or_else(const WindowOverride& other) const;

  WindowSpec spec_of(const Codebook& codebook) const;
};

/// The exact rows of one stream of a cache.
struct WindowPool {
  std::size_t n_rows = 0;   ///< All of them.
  std::size_t n_spare = 0;  ///< Those beside what the sequences need: for marked rows.

  bool operator==(const WindowPool&) const = default;
};

/// The pool of a stream of n_cells cells that n_sequences sequences share:
///
///     n_rows  = n_sequences (window + sinks) + max(n_sequences kRollback, spare)
///     spare   = n_sequences spec.spare, or n_cells code bytes of a cell / (4 row bytes),
///
/// code and row bytes summed over the codebook's coded tensors; no more rows than cells.
WindowPool window_pool(const WindowSpec& spec, const Codebook& codebook, std::size_t n_cells,
                       std::size_t n_sequences);

}  // namespace cqkv
