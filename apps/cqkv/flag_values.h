// What the values of flags may be, one table for all commands, and the functions that add flags
// with such values. A value outside is wrong use (exit code 2), found before anything is done.
// Files are looked at when a command begins (places.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cache/window_pool.h"

namespace cqkv::app {

/// Whole numbers, both ends included.
struct Range {
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
  bool or_all = false;  ///< -1 stands for all.
};

inline constexpr std::int64_t kMostTokens = 1 << 22;

inline constexpr Range kThreadRange{1, 512};  // ggml's limit
inline constexpr Range kBatchRange{1, kMostTokens};
inline constexpr Range kTokenRange{0, kMostTokens};

// Of perplexity.
inline constexpr Range kChunkSizeRange{4, kMostTokens};
inline constexpr Range kChunkCountRange{1, 1 << 30, /*or_all=*/true};

// Of calibration.
inline constexpr Range kSequenceSizeRange{2, kMostTokens};
inline constexpr Range kTextRange{2, std::int64_t{1} << 31U};  // tokens in all
inline constexpr Range kIterationRange{1, 1'000'000};
inline constexpr Range kSeedRange{0, INT64_MAX};

// Of caches.
inline constexpr Range kCellRange{1, std::int64_t{1} << 31U};  // of all sequences together
inline constexpr Range kSequenceRange{1, 256};                 // libllama's limit
inline constexpr Range kWindowRange{0, kMaxWindow};

// Of benchmarks.
inline constexpr Range kHeadDimRange{1, 1024};
inline constexpr Range kHeadRange{1, 128};
inline constexpr Range kSequenceCountRange{1, 1024};
inline constexpr Range kRowRange{1, 1 << 16};
inline constexpr Range kRepeatRange{1, 1000};

/// Refuses text that is no whole number of the range: "got '0', want a whole number from 1 to 512".
CLI::Validator whole_number(const Range& range);

/// The same for numbers with a fraction.
CLI::Validator real_number(double lowest, double highest);

/// Refuses the empty name.
CLI::Validator file_name();

/// A flag with one number.
template <typename T>
CLI::Option* add_number(CLI::App* parser, const char* names, T& value, const Range& range,
                        const char* what) {
  return parser->add_option(names, value, what)
      ->capture_default_str()
      ->check(whole_number(range))
      ->type_name("N");
}

/// A flag with numbers, separated by commas or spaces.
CLI::Option* add_numbers(CLI::App* parser, const char* names, std::vector<int>& values,
                         const Range& range, const char* what);

/// Time to measure for, in seconds.
CLI::Option* add_seconds(CLI::App* parser, double& value, const char* what);

/// A flag with the name of a file, or of several.
CLI::Option* add_file(CLI::App* parser, const char* names, std::string& value, const char* what);
CLI::Option* add_files(CLI::App* parser, const char* names, std::vector<std::string>& values,
                       const char* what);

/// --json, where figures go to a file.
CLI::Option* add_json_file(CLI::App* parser, std::string& value);

/// --window, --sinks and --spare where they override a codebook's own window.
void add_window_flags(CLI::App* parser, WindowOverride& window);

}  // namespace cqkv::app
