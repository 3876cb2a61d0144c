// Counting what text_check.h says of texts, and the words for it.
#include "calibration/text_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <unordered_set>
#include <vector>

#include "core/hash.h"

namespace cqkv {
namespace {

constexpr std::size_t kRun = 8;         // tokens
constexpr std::size_t kStretch = 2048;  // tokens

constexpr double kMuchRepeated = 0.5;
// Texts of one kind have 0.33 to 0.67, those of two or three 0.10 to 0.24
// (docs/design/calibration.md).
constexpr double kAlike = 0.3;
constexpr std::size_t kFewVectors = 32;  // a centroid

std::string percent(double share) {
  return std::to_string(std::lround(100 * share)) + " %";
}

double repeated_share(std::span<const Sequence> sequences) {
  std::unordered_set<std::uint64_t> seen;
  std::size_t n_runs = 0;
  for (const Sequence& sequence : sequences) {
    for (std::size_t i = 0; i + kRun <= sequence.tokens.size(); i++) {
      seen.insert(hash_bytes(sequence.tokens.data() + i, kRun * sizeof(Token)));
      n_runs++;
    }
  }
  return n_runs == 0 ? 0 : static_cast<double>(n_runs - seen.size()) / static_cast<double>(n_runs);
}

// The stretches of each file, tokens sorted.
std::vector<std::vector<Token>> sorted_stretches(std::span<const Sequence> sequences) {
  std::map<std::size_t, std::vector<Token>> texts;
  for (const Sequence& sequence : sequences) {
    auto& text = texts[sequence.file];
    text.insert(text.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  std::vector<std::vector<Token>> stretches;
  for (const auto& [file, text] : texts) {
    for (auto at = text.begin(); text.end() - at >= static_cast<std::ptrdiff_t>(kStretch);
         at += kStretch) {
      stretches.emplace_back(at, at + kStretch);
      std::sort(stretches.back().begin(), stretches.back().end());
    }
  }
  return stretches;
}

// How many tokens two sorted stretches have in common, each counted as often as in both.
std::size_t n_shared(const std::vector<Token>& a, const std::vector<Token>& b) {
  std::size_t n = 0;
  for (auto x = a.begin(), y = b.begin(); x != a.end() && y != b.end();) {
    if (*x == *y) {
      n++;
      x++;
      y++;
    } else if (*x < *y) {
      x++;
    } else {
      y++;
    }
  }
  return n;
}

std::optional<double> shared_quartile(std::span<const Sequence> sequences) {
  const auto stretches = sorted_stretches(sequences);
  if (stretches.size() < 2) {
    return std::nullopt;
  }
  std::vector<std::size_t> shared;
  for (std::size_t i = 0; i < stretches.size(); i++) {
    for (std::size_t j = 0; j < i; j++) {
      shared.push_back(n_shared(stretches[i], stretches[j]));
    }
  }
  const auto quartile = shared.begin() + static_cast<std::ptrdiff_t>((shared.size() - 1) / 4);
  std::nth_element(shared.begin(), quartile, shared.end());
  return static_cast<double>(*quartile) / static_cast<double>(kStretch);
}

}  // namespace

TextMeasures measure_texts(std::span<const Sequence> sequences) {
  TextMeasures measures;
  std::unordered_set<Token> distinct;
  for (const Sequence& sequence : sequences) {
    measures.n_tokens += sequence.tokens.size();
    distinct.insert(sequence.tokens.begin(), sequence.tokens.end());
  }
  measures.n_distinct = distinct.size();
  measures.repeated = repeated_share(sequences);
  measures.shared_quartile = shared_quartile(sequences);
  return measures;
}

std::string text_warning(const TextMeasures& measures, std::size_t n_centroids) {
  if (measures.n_distinct < n_centroids) {
    return "the texts have only " + std::to_string(measures.n_distinct) +
           " different tokens, fewer than the " + std::to_string(n_centroids) +
           " centroids of a group, so that losses look small and other text is served badly; "
           "give more varied text";
  }
  if (measures.repeated > kMuchRepeated) {
    return percent(measures.repeated) +
           " of the texts repeat what stands before, so that losses look small and other text is "
           "served badly; give text that goes on";
  }
  if (measures.shared_quartile.value_or(0) > kAlike) {
    return "the texts seem to be of one kind: most stretches of " + std::to_string(kStretch) +
           " tokens have " + percent(*measures.shared_quartile) +
           " and more of their tokens in common (those of two kinds 10 to 25 %), and other kinds "
           "are served several times worse; give texts of every kind that the model will see";
  }
  return "";
}

std::string vectors_warning(std::size_t n_vectors, const CodecSpec& spec) {
  const auto n_centroids = static_cast<std::size_t>(spec.n_centroids());
  if (n_vectors >= kFewVectors * n_centroids) {
    return "";
  }
  return spec.name() + " has " + std::to_string(n_vectors) + " vectors for the " +
         std::to_string(n_centroids) + " centroids of a group, want " +
         std::to_string(kFewVectors * n_centroids) + " or more, " + std::to_string(kFewVectors) +
         " a centroid; give more tokens (--n-tokens) or ask for fewer bits";
}

}  // namespace cqkv
