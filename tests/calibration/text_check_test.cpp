// What is said of calibration texts, on tokens made by hand: texts that make codebooks of
// seemingly small loss must be named, and ordinary ones left alone. Measures of real texts
// are in docs/design/calibration.md.
#include "calibration/text_check.h"

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

constexpr std::size_t kStretch = 2048;

// Tokens drawn from [first, first + n_kinds).
Sequence random_text(std::size_t file, Token first, std::uint64_t n_kinds, std::size_t n_tokens,
                     std::uint64_t seed) {
  Rng rng(seed);
  Sequence sequence{file, {}};
  for (std::size_t i = 0; i < n_tokens; i++) {
    sequence.tokens.push_back(first + static_cast<Token>(rng.below(n_kinds)));
  }
  return sequence;
}

Sequence repeated_line(std::size_t n_kinds, std::size_t n_tokens) {
  Sequence sequence;
  for (std::size_t i = 0; i < n_tokens; i++) {
    sequence.tokens.push_back(static_cast<Token>(i % n_kinds));
  }
  return sequence;
}

// In two files, `n_other` of 16 stretches of another kind.
std::vector<Sequence> mixed_texts(std::size_t n_other) {
  std::vector<Sequence> texts;
  for (std::size_t i = 0; i < 16; i++) {
    const bool other = i < n_other;
    texts.push_back(random_text(other ? 1 : 0, other ? 5000 : 0, 400, kStretch, i));
  }
  return texts;
}

std::string warning_of(const std::vector<Sequence>& texts) {
  return text_warning(measure_texts(texts), 256);
}

void expect_words(const std::string& warning, const std::vector<std::string>& words) {
  for (const auto& word : words) {
    EXPECT_NE(warning.find(word), std::string::npos) << "'" << warning << "' lacks " << word;
  }
  EXPECT_EQ(warning.find('\n'), std::string::npos) << "one line each";
}

TEST(TextCheck, CountsByHand) {
  const std::vector<Sequence> texts = {{0, {1, 2, 3, 4, 5, 6, 7, 8, 9}},
                                       {0, {2, 3, 4, 5, 6, 7, 8, 9, 2}}};
  const TextMeasures measures = measure_texts(texts);
  EXPECT_EQ(measures.n_tokens, 18U);
  EXPECT_EQ(measures.n_distinct, 9U);
  // Of four runs of eight, 2 to 9 stands twice.
  EXPECT_DOUBLE_EQ(measures.repeated, 0.25);
  EXPECT_FALSE(measures.shared_quartile.has_value());
}

TEST(TextCheck, NothingIsSaidOfMixedTexts) {
  EXPECT_EQ(warning_of(mixed_texts(8)), "");
  EXPECT_EQ(warning_of(mixed_texts(4)), "");
}

TEST(TextCheck, FewDifferentTokens) {
  expect_words(warning_of({repeated_line(1, 200'000)}), {"only 1 different", "256 centroids"});
  expect_words(warning_of({repeated_line(11, 8192)}), {"only 11 different"});
}

TEST(TextCheck, OneLongLineAgainAndAgain) {
  expect_words(warning_of({repeated_line(300, 8192)}), {"96 % of the texts repeat"});
}

TEST(TextCheck, OneKind) {
  expect_words(warning_of(mixed_texts(0)), {"one kind", "every kind"});
}

// Two files are no two kinds, and one odd page is none either.
TEST(TextCheck, FilesAndOddPagesMakeNoKind) {
  std::vector<Sequence> texts = mixed_texts(0);
  for (std::size_t i = 0; i < texts.size(); i++) {
    texts[i].file = i % 2;
  }
  expect_words(warning_of(texts), {"one kind"});
  expect_words(warning_of(mixed_texts(1)), {"one kind"});
}

// Short sequences are joined; those of other files are not mixed in between.
TEST(TextCheck, StretchesAreJoinedFromSequencesOfAFile) {
  std::vector<Sequence> texts;
  for (std::size_t i = 0; i < 32; i++) {
    texts.push_back(random_text(i % 2, i % 2 == 0 ? 0 : 5000, 400, kStretch / 8, i));
  }
  const auto shared = measure_texts(texts).shared_quartile;
  ASSERT_TRUE(shared.has_value());
  EXPECT_EQ(*shared, 0);
}

TEST(TextCheck, FewVectorsForACentroid) {
  EXPECT_EQ(vectors_warning(30720, {8, 8}), "");
  expect_words(vectors_warning(1000, {8, 8}), {"8c8b", "1000 vectors", "256 centroids"});
  expect_words(vectors_warning(30720, {8, 12}), {"8c12b", "4096 centroids", "--n-tokens"});
}

}  // namespace
}  // namespace cqkv
