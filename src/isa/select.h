// The one ranked list of levels, which of them a processor runs, and the choice of a table
// for a level. Every kind of kernel (attention, k-means, dense products) has tables for
// some levels only; each chooses by best_of. What users see of levels is cqkv/isa.h.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "isa/level.h"

namespace cqkv::isa {

/// What a processor and its operating system offer, as far as levels ask: a set of bits.
using Features = std::uint32_t;

inline constexpr Features kHasAvx2 = 1U << 0U;
inline constexpr Features kHasFma = 1U << 1U;
inline constexpr Features kHasF16c = 1U << 2U;
inline constexpr Features kHasAvx512f = 1U << 3U;
inline constexpr Features kHasAvx512bw = 1U << 4U;
inline constexpr Features kHasAvx512dq = 1U << 5U;
inline constexpr Features kHasAvx512vl = 1U << 6U;
inline constexpr Features kHasAvx512vbmi = 1U << 7U;
inline constexpr Features kHasAvx512vnni = 1U << 8U;
inline constexpr Features kHasNeon = 1U << 9U;
inline constexpr Features kHasDotprod = 1U << 10U;

/// Those of the processor that this runs on.
Features detect_features();

/// Every level there is, best first; levels of x86 and of Arm alike, kScalar last.
std::span<const Level> all_levels();

std::string_view level_name(Level level);

/// The next lower level, whose code runs wherever `level` does; of kScalar itself.
Level level_below(Level level);

/// Everything that `level` needs, what the levels below it need included.
Features needed_features(Level level);

/// Whether this build has code for `level`.
bool compiled(Level level);

/// The levels whose needs are met, best first, compiled or not; kScalar last.
std::vector<Level> levels_of(Features features);

/// Those of this processor that are compiled in: what a level may be forced to.
std::vector<Level> usable_levels();

/// The level in use: the best usable one unless forced (cqkv/isa.h).
Level active_level();

/// Whether somebody chose the level in use, by CQKV_FORCE_ISA or force_isa.
bool is_forced();

/// The best table at or below `level`: its own, else that of the level below, and so on.
///
/// @param tables  each with a member `level`, in any order but for the last, which is
///   of kScalar.
template <typename Table>
const Table& best_of(std::span<const Table* const> tables, Level level) {
  for (; level != Level::kScalar; level = level_below(level)) {
    for (const Table* table : tables) {
      if (table->level == level) {
        return *table;
      }
    }
  }
  return *tables.back();
}

/// The tables that this processor can run, in the order given.
template <typename Table>
std::vector<const Table*> usable_of(std::span<const Table* const> tables) {
  std::vector<const Table*> usable;
  const Features features = detect_features();
  for (const Table* table : tables) {
    if ((needed_features(table->level) & ~features) == 0) {
      usable.push_back(table);
    }
  }
  return usable;
}

}  // namespace cqkv::isa
