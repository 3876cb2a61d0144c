// The C interface: against attention worked out in plain loops, its invariances to the bit, and
// what it says of wrong use. That it works from C is tests/package.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "cqkv.h"
#include "rope/rope.h"
#include "support/temp_folder.h"

namespace cqkv {
namespace {

constexpr int kLayers = 2;
constexpr int kKvHeads = 2;
constexpr int kHeads = 4;
constexpr int kHeadDim = 16;
constexpr int kChannels = kKvHeads * kHeadDim;
constexpr std::size_t kQueryFloats = static_cast<std::size_t>(kHeads) * kHeadDim;
// Of the roundings of bytes, of numbers of size 1 (tests/attention/attention_test.cpp).
constexpr float kTolerance = 0.06F;

struct Free {
  void operator()(cqkv_codebook* codebook) const { cqkv_codebook_free(codebook); }

  void operator()(cqkv_cache* cache) const { cqkv_cache_free(cache); }
};

using Book = std::unique_ptr<cqkv_codebook, Free>;
using Cache = std::unique_ptr<cqkv_cache, Free>;

std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.normal());
  }
  return values;
}

Book learned() {
  cqkv_codebook* made = nullptr;
  EXPECT_EQ(cqkv_codebook_create(kLayers, "test", 8, 2, &made), CQKV_OK) << cqkv_last_error();
  cqkv_learn_options options = CQKV_LEARN_OPTIONS_INIT;
  options.n_kv_heads = kKvHeads;
  options.head_dim = kHeadDim;
  options.group_dim = 4;
  options.code_bits = 6;
  options.max_iterations = 5;
  for (int layer = 0; layer < kLayers; layer++) {
    for (const cqkv_kind kind : {CQKV_KEY, CQKV_VALUE}) {
      const auto rows = random_floats(512 * kChannels, 10 + 2 * layer + kind);
      double error = 0;
      EXPECT_EQ(
          cqkv_codebook_learn(made, layer, kind, rows.data(), 512, kChannels, &options, &error),
          CQKV_OK)
          << cqkv_last_error();
      EXPECT_GT(error, 0.0);
      EXPECT_LT(error, 0.6);
    }
  }
  return Book(made);
}

Cache make_cache(const Book& book, int window, std::size_t n_streams = 1, int n_threads = 1) {
  cqkv_cache_options options = CQKV_CACHE_OPTIONS_INIT;
  options.n_cells = 100;  // becomes 128
  options.n_streams = n_streams;
  options.window = window;
  options.sinks = window == 0 ? 0 : -1;
  options.n_threads = n_threads;
  cqkv_cache* cache = nullptr;
  EXPECT_EQ(cqkv_cache_create(book.get(), &options, &cache), CQKV_OK) << cqkv_last_error();
  return Cache(cache);
}

cqkv_rope rope() {
  cqkv_rope params = CQKV_ROPE_INIT;
  params.n_dims = kHeadDim;
  return params;
}

// Rows of tokens, the same for every cache.
struct Tokens {
  explicit Tokens(int n_tokens)
      : n(n_tokens), queries(random_floats(static_cast<std::size_t>(n) * kQueryFloats, 1)) {
    for (int layer = 0; layer < kLayers; layer++) {
      keys.push_back(random_floats(static_cast<std::size_t>(n) * kChannels, 2 + 2 * layer));
      values.push_back(random_floats(static_cast<std::size_t>(n) * kChannels, 3 + 2 * layer));
    }
  }

  int n;
  std::vector<std::vector<float>> keys;  // [layer][token, channel]: rotated
  std::vector<std::vector<float>> values;
  std::vector<float> queries;
};

// Tokens [first, first + n) into cells of their own number, from `cell` on; outputs [layer] of
// theirs.
std::vector<std::vector<float>> step(cqkv_cache* cache, const Tokens& tokens, int first, int n,
                                     std::size_t cell = 0) {
  std::vector<std::int32_t> positions;
  std::vector<std::size_t> cells;
  for (int i = first; i < first + n; i++) {
    positions.push_back(i);
    cells.push_back(cell + static_cast<std::size_t>(i));
  }
  EXPECT_EQ(cqkv_cache_plan(cache, positions.data(), cells.data(), cells.size()), CQKV_OK)
      << cqkv_last_error();
  std::vector<std::vector<float>> outputs;
  const cqkv_rope params = rope();
  for (int layer = 0; layer < kLayers; layer++) {
    const std::size_t row = static_cast<std::size_t>(first) * kChannels;
    EXPECT_EQ(
        cqkv_cache_store_keys(cache, layer, tokens.keys[layer].data() + row, kChannels, &params),
        CQKV_OK)
        << cqkv_last_error();
    EXPECT_EQ(cqkv_cache_store_values(cache, layer, tokens.values[layer].data() + row, kChannels),
              CQKV_OK)
        << cqkv_last_error();
    std::vector<float> out(static_cast<std::size_t>(n) * kQueryFloats, NAN);
    cqkv_attention attention = CQKV_ATTENTION_INIT;
    attention.layer = layer;
    attention.n_heads = kHeads;
    attention.scale = 0.25F;
    attention.queries = tokens.queries.data() + static_cast<std::size_t>(first) * kQueryFloats;
    attention.out = out.data();
    EXPECT_EQ(cqkv_cache_attend(cache, &attention), CQKV_OK) << cqkv_last_error();
    outputs.push_back(std::move(out));
  }
  EXPECT_EQ(cqkv_cache_commit(cache), CQKV_OK) << cqkv_last_error();
  return outputs;
}

// The last token's outputs after all tokens went in by steps of n.
std::vector<std::vector<float>> last_outputs(cqkv_cache* cache, const Tokens& tokens, int n,
                                             std::size_t cell = 0) {
  std::vector<std::vector<float>> outputs;
  for (int first = 0; first < tokens.n; first += n) {
    const int size = std::min(n, tokens.n - first);
    outputs = step(cache, tokens, first, size, cell);
    for (auto& output : outputs) {
      output.erase(output.begin(),
                   output.begin() + static_cast<std::ptrdiff_t>((size - 1) * kQueryFloats));
    }
  }
  return outputs;
}

// Keys and values of a token as the codes have them, keys rotated.
void decoded_rows(const Book& book, const Tokens& tokens, int layer, int token,
                  std::vector<float>& key, std::vector<float>& value) {
  RopeParams params;
  params.n_dims = kHeadDim;
  params.mode = RopeMode::kNeox;
  std::vector<float> cosines(kHeadDim / 2);
  std::vector<float> sines(kHeadDim / 2);
  rope_row_ggml(params, token, cosines.data(), sines.data());
  const auto row = [&](const std::vector<float>& rows) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(token) * kChannels;
    return std::vector<float>(begin, begin + kChannels);
  };
  const auto code = [&](cqkv_kind kind, std::vector<float>& values) {
    cqkv_shape shape;
    EXPECT_EQ(cqkv_codebook_shape(book.get(), layer, kind, &shape), CQKV_OK);
    std::vector<std::uint16_t> codes(static_cast<std::size_t>(shape.n_codes));
    EXPECT_EQ(cqkv_encode(book.get(), layer, kind, values.data(), 1, kChannels, codes.data()),
              CQKV_OK);
    EXPECT_EQ(cqkv_decode(book.get(), layer, kind, codes.data(), 1, values.data(), kChannels),
              CQKV_OK);
  };
  key = row(tokens.keys[static_cast<std::size_t>(layer)]);
  rope_inverse(params, cosines.data(), sines.data(), kKvHeads, kHeadDim, key.data());
  code(CQKV_KEY, key);
  rope_forward(params, cosines.data(), sines.data(), kKvHeads, kHeadDim, key.data());
  value = row(tokens.values[static_cast<std::size_t>(layer)]);
  code(CQKV_VALUE, value);
}

TEST(CApi, AttentionOnCodes) {
  const Book book = learned();
  const Cache cache = make_cache(book, 0);
  const Tokens tokens(90);
  const auto outputs = last_outputs(cache.get(), tokens, 90);
  for (int layer = 0; layer < kLayers; layer++) {
    for (int head = 0; head < kHeads; head++) {
      const float* query = tokens.queries.data() + 89 * kQueryFloats + head * kHeadDim;
      const int channel = head / 2 * kHeadDim;
      std::vector<double> want(kHeadDim);
      double sum = 0;
      for (int token = 0; token < 90; token++) {
        std::vector<float> key;
        std::vector<float> value;
        decoded_rows(book, tokens, layer, token, key, value);
        double score = 0;
        for (int d = 0; d < kHeadDim; d++) {
          score += query[d] * key[static_cast<std::size_t>(channel + d)];
        }
        const double p = std::exp(0.25 * score);
        sum += p;
        for (int d = 0; d < kHeadDim; d++) {
          want[static_cast<std::size_t>(d)] += p * value[static_cast<std::size_t>(channel + d)];
        }
      }
      for (int d = 0; d < kHeadDim; d++) {
        EXPECT_NEAR(outputs[layer][static_cast<std::size_t>(head * kHeadDim + d)],
                    want[static_cast<std::size_t>(d)] / sum, kTolerance);
      }
    }
  }
}

TEST(CApi, ResultsDoNotDependOnStepsThreadsOrCells) {
  const Book book = learned();
  const Tokens tokens(60);
  const Cache one = make_cache(book, 8);
  const auto want = last_outputs(one.get(), tokens, 1);
  for (const int n : {7, 60}) {
    for (const int n_threads : {1, 3}) {
      const Cache cache = make_cache(book, 8, 2, n_threads);
      EXPECT_EQ(last_outputs(cache.get(), tokens, n), want) << n << " tokens a step";
      EXPECT_EQ(last_outputs(cache.get(), tokens, n, 128), want) << "in the second stream";
    }
  }
}

TEST(CApi, ASavedStateGoesOn) {
  const Book book = learned();
  const Tokens tokens(41);
  const Cache cache = make_cache(book, 8);
  for (int first = 0; first < 40; first += 8) {
    step(cache.get(), tokens, first, 8);
  }
  std::vector<std::uint8_t> saved(cqkv_cache_saved_bytes(cache.get(), 40));
  ASSERT_EQ(cqkv_cache_save(cache.get(), 0, 40, saved.data()), CQKV_OK) << cqkv_last_error();
  EXPECT_LT(saved.size(), 40 * kChannels * 2 * kLayers * sizeof(float));
  const auto want = step(cache.get(), tokens, 40, 1);
  const Cache other = make_cache(book, 8);
  ASSERT_EQ(cqkv_cache_load(other.get(), 0, 40, saved.data()), CQKV_OK) << cqkv_last_error();
  EXPECT_EQ(step(other.get(), tokens, 40, 1), want);
  // A copy in another stream does the same.
  const Cache two = make_cache(book, 8, 2);
  ASSERT_EQ(cqkv_cache_load(two.get(), 0, 40, saved.data()), CQKV_OK) << cqkv_last_error();
  ASSERT_EQ(cqkv_cache_copy(two.get(), 0, 128, 40), CQKV_OK) << cqkv_last_error();
  EXPECT_EQ(step(two.get(), tokens, 40, 1, 128), want);
  // A damaged row is told, and nobody may look at it.
  saved[10] ^= 1;
  const Cache damaged = make_cache(book, 8);
  EXPECT_EQ(cqkv_cache_load(damaged.get(), 0, 40, saved.data()), CQKV_CORRUPT);
  const std::int32_t position = 40;
  const std::size_t cell = 40;
  const cqkv_rope params = rope();
  ASSERT_EQ(cqkv_cache_plan(damaged.get(), &position, &cell, 1), CQKV_OK);
  ASSERT_EQ(cqkv_cache_store_keys(damaged.get(), 0, tokens.keys[0].data(), kChannels, &params),
            CQKV_OK);
  ASSERT_EQ(cqkv_cache_store_values(damaged.get(), 0, tokens.values[0].data(), kChannels), CQKV_OK);
  std::vector<float> out(kQueryFloats);
  cqkv_attention attention = CQKV_ATTENTION_INIT;
  attention.n_heads = kHeads;
  attention.queries = tokens.queries.data();
  attention.out = out.data();
  EXPECT_EQ(cqkv_cache_attend(damaged.get(), &attention), CQKV_MISMATCH);
  cqkv_cache_abandon(damaged.get());
}

TEST(CApi, ShiftsMovePositions) {
  const Book book = learned();
  const Tokens tokens(31);
  const Cache cache = make_cache(book, 0);
  const Cache shifted = make_cache(book, 0);
  for (const Cache* each : {&cache, &shifted}) {
    step(each->get(), tokens, 0, 30);
  }
  // All positions alike: rotations are relative, so nothing but roundings changes.
  const std::vector<std::int32_t> up(30, 5);
  const std::vector<std::int32_t> down(30, -5);
  ASSERT_EQ(cqkv_cache_shift(shifted.get(), 0, up.data(), up.size()), CQKV_OK);
  ASSERT_EQ(cqkv_cache_shift(shifted.get(), 0, down.data(), down.size()), CQKV_OK);
  EXPECT_EQ(step(shifted.get(), tokens, 30, 1), step(cache.get(), tokens, 30, 1));
}

TEST(CApi, FilesAreReadBack) {
  const testing::TempFolder folder;
  const Book book = learned();
  const std::string path = folder.file("book.gguf");
  ASSERT_EQ(cqkv_codebook_save(book.get(), path.c_str()), CQKV_OK) << cqkv_last_error();
  cqkv_codebook* read = nullptr;
  ASSERT_EQ(cqkv_codebook_open(path.c_str(), &read), CQKV_OK) << cqkv_last_error();
  const Book again(read);
  EXPECT_EQ(cqkv_codebook_n_layers(read), kLayers);
  EXPECT_EQ(cqkv_codebook_bits_per_channel(read), 1.5);
  EXPECT_EQ(cqkv_codebook_identity(read), cqkv_codebook_identity(book.get()));
  EXPECT_EQ(cqkv_codebook_identity(nullptr), 0U);
  const auto row = random_floats(kChannels, 99);
  std::vector<std::uint16_t> codes(kChannels / 4);
  std::vector<std::uint16_t> same(kChannels / 4);
  ASSERT_EQ(cqkv_encode(book.get(), 1, CQKV_KEY, row.data(), 1, kChannels, codes.data()), CQKV_OK);
  ASSERT_EQ(cqkv_encode(read, 1, CQKV_KEY, row.data(), 1, kChannels, same.data()), CQKV_OK);
  EXPECT_EQ(codes, same);
  EXPECT_EQ(cqkv_codebook_open(folder.file("none").c_str(), &read), CQKV_NOT_FOUND);
  EXPECT_NE(std::string(cqkv_last_error()).find(folder.file("none")), std::string::npos);
}

TEST(CApi, WrongUseIsToldAndChangesNothing) {
  const Book book = learned();
  const Tokens tokens(12);
  const Cache cache = make_cache(book, 8);
  step(cache.get(), tokens, 0, 10);
  const auto expect = [](cqkv_status got, cqkv_status want, const char* word) {
    EXPECT_EQ(got, want);
    EXPECT_NE(std::string(cqkv_last_error()).find(word), std::string::npos) << cqkv_last_error();
  };
  cqkv_attention attention = CQKV_ATTENTION_INIT;
  std::vector<float> out(kQueryFloats);
  attention.n_heads = kHeads;
  attention.queries = tokens.queries.data();
  attention.out = out.data();
  const auto wrong = CQKV_INVALID_ARGUMENT;
  expect(cqkv_cache_attend(cache.get(), &attention), wrong, "cqkv_cache_plan");
  expect(cqkv_cache_commit(cache.get()), wrong, "without a step");
  expect(cqkv_cache_store_values(cache.get(), 0, out.data(), kChannels), wrong, "cqkv_cache_plan");
  const std::int32_t positions[] = {10, 10};
  const std::size_t cells[] = {10, 1000};
  expect(cqkv_cache_plan(cache.get(), positions, cells, 2), wrong, "cells 1000");
  ASSERT_EQ(cqkv_cache_plan(cache.get(), positions, cells, 1), CQKV_OK);
  expect(cqkv_cache_plan(cache.get(), positions, cells, 1), wrong, "during a step");
  expect(cqkv_cache_shift(cache.get(), 0, positions, 1), wrong, "during a step");
  expect(cqkv_cache_attend(cache.get(), &attention), wrong, "did not store");
  attention.layer = 7;
  expect(cqkv_cache_attend(cache.get(), &attention), wrong, "7");
  attention.size = 1 << 20;
  expect(cqkv_cache_attend(cache.get(), &attention), wrong, "_INIT");
  cqkv_cache_abandon(cache.get());
  expect(cqkv_cache_copy(cache.get(), 0, 120, 20), wrong, "120");
  const std::uint16_t code = 64;
  std::vector<std::uint16_t> codes(kChannels / 4, code);
  std::vector<float> row(kChannels);
  expect(cqkv_decode(book.get(), 0, CQKV_KEY, codes.data(), 1, row.data(), kChannels), wrong, "64");
  expect(cqkv_decode(book.get(), 2, CQKV_KEY, codes.data(), 1, row.data(), kChannels), wrong, "2");
  expect(cqkv_encode(nullptr, 0, CQKV_KEY, row.data(), 1, kChannels, codes.data()), wrong, "null");
  // As if nothing had been tried, but for the token that was taken back.
  const Cache untouched = make_cache(book, 8);
  step(untouched.get(), tokens, 0, 10);
  EXPECT_EQ(step(cache.get(), tokens, 10, 2), step(untouched.get(), tokens, 10, 2));
}

TEST(CApi, OptionsOfAnOlderVersionKeepDefaults) {
  const Book book = learned();
  cqkv_cache_options options = CQKV_CACHE_OPTIONS_INIT;
  options.size = offsetof(cqkv_cache_options, n_streams);
  options.n_cells = 64;
  options.n_streams = 0;  // not known to it
  cqkv_cache* cache = nullptr;
  ASSERT_EQ(cqkv_cache_create(book.get(), &options, &cache), CQKV_OK) << cqkv_last_error();
  EXPECT_GT(cqkv_cache_bytes(cache), 0U);
  cqkv_cache_free(cache);
}

}  // namespace
}  // namespace cqkv
