// The ranked list of levels; see select.h. A new level is a line here.
#include <array>
#include <cstddef>

#include "isa/select.h"

namespace cqkv::isa {
namespace {

#ifdef CQKV_HAVE_AVX2
constexpr bool kHaveAvx2 = true;
#else
constexpr bool kHaveAvx2 = false;
#endif
#ifdef CQKV_HAVE_AVX512
constexpr bool kHaveAvx512 = true;
#else
constexpr bool kHaveAvx512 = false;
#endif
#ifdef CQKV_HAVE_AVX512_VBMI
constexpr bool kHaveAvx512Vbmi = true;
#else
constexpr bool kHaveAvx512Vbmi = false;
#endif
#ifdef CQKV_HAVE_NEON
constexpr bool kHaveNeon = true;
#else
constexpr bool kHaveNeon = false;
#endif
#ifdef CQKV_HAVE_NEON_DOTPROD
constexpr bool kHaveNeonDotprod = true;
#else
constexpr bool kHaveNeonDotprod = false;
#endif

struct Entry {
  const char* name;
  Level level;
  Level below;
  Features needs;  // beyond those of the level below
  bool compiled;
};

// Best first.
constexpr Entry kEntries[] = {
    {"avx512_vbmi", Level::kAvx512Vbmi, Level::kAvx512, kHasAvx512vbmi | kHasAvx512vnni,
     kHaveAvx512Vbmi},
    {"avx512", Level::kAvx512, Level::kAvx2,
     kHasAvx512f | kHasAvx512bw | kHasAvx512dq | kHasAvx512vl, kHaveAvx512},
    {"avx2", Level::kAvx2, Level::kScalar, kHasAvx2 | kHasFma | kHasF16c, kHaveAvx2},
    {"neon_dotprod", Level::kNeonDotprod, Level::kNeon, kHasDotprod, kHaveNeonDotprod},
    {"neon", Level::kNeon, Level::kScalar, kHasNeon, kHaveNeon},
    {"scalar", Level::kScalar, Level::kScalar, 0, true},
};

constexpr std::size_t kNLevels = std::size(kEntries);

constexpr std::array<Level, kNLevels> list_levels() {
  std::array<Level, kNLevels> levels{};
  for (std::size_t i = 0; i < kNLevels; i++) {
    levels[i] = kEntries[i].level;
  }
  return levels;
}

constexpr std::array<Level, kNLevels> kLevels = list_levels();

const Entry& entry(Level level) {
  for (const Entry& candidate : kEntries) {
    if (candidate.level == level) {
      return candidate;
    }
  }
  return kEntries[kNLevels - 1];
}

}  // namespace

std::span<const Level> all_levels() {
  return kLevels;
}

std::string_view level_name(Level level) {
  return entry(level).name;
}

Level level_below(Level level) {
  return entry(level).below;
}

Features needed_features(Level level) {
  Features needed = 0;
  for (; level != Level::kScalar; level = level_below(level)) {
    needed |= entry(level).needs;
  }
  return needed;
}

bool compiled(Level level) {
  return entry(level).compiled;
}

std::vector<Level> levels_of(Features features) {
  std::vector<Level> levels;
  for (const Level level : all_levels()) {
    if ((needed_features(level) & ~features) == 0) {
      levels.push_back(level);
    }
  }
  return levels;
}

std::vector<Level> usable_levels() {
  std::vector<Level> levels;
  for (const Level level : levels_of(detect_features())) {
    if (compiled(level)) {
      levels.push_back(level);
    }
  }
  return levels;
}

}  // namespace cqkv::isa
