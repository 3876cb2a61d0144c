// The exact window through the device: that what is exact depends on positions alone
// and not on batches, slots, saving or copying, and that the pool stays in its bounds.
// The rule for one query is tested against an oracle in tests/attention, the bookkeeping
// in tests/cache/exact_window_test.cpp.
#include "cache/exact_window.h"
#include "device/device_fixture.h"

namespace cqkv::device {
namespace {

constexpr CodecSpec k1Bit{8, 8};
constexpr CodecSpec k2Bit{4, 8};
constexpr int kWindow = 30;
constexpr int kSinks = 3;

class Window : public ::testing::Test {
 protected:
  void TearDown() override { Backend::get().set_window(-1, -1); }

  static void use(int window, int sinks, int n_sequences = 1, CodecSpec k = k1Bit,
                  CodecSpec v = k2Bit) {
    const CacheShape shape;
    Backend::get().set_window(window, sinks, n_sequences);
    use_codebook(random_codebook(shape.n_layers, k, v, shape.n_kv_heads, shape.head_dim, 21),
                 "window");
  }

  static std::vector<float> evaluate_in_steps(TestCache& cache, const Tokens& tokens, int step,
                                              int stream = 0) {
    std::vector<float> last;
    for (std::size_t first = 0; first < tokens.positions.size();
         first += static_cast<std::size_t>(step)) {
      const std::size_t end =
          std::min(first + static_cast<std::size_t>(step), tokens.positions.size());
      Tokens part = tokens;
      part.positions.assign(tokens.positions.begin() + static_cast<std::ptrdiff_t>(first),
                            tokens.positions.begin() + static_cast<std::ptrdiff_t>(end));
      part.cells.assign(tokens.cells.begin() + static_cast<std::ptrdiff_t>(first),
                        tokens.cells.begin() + static_cast<std::ptrdiff_t>(end));
      last = cache.evaluate(part, stream);
      EXPECT_FALSE(last.empty()) << Backend::get().last_error();
    }
    return last;
  }
};

// A window over everything makes even a random codebook harmless: what is left is the
// residual's rounding, 1/254 of the largest of 32 channels at most.
TEST_F(Window, OverEverythingIsExactAttention) {
  const CacheShape shape;
  const Tokens tokens = run_of_tokens(0, 100);
  EXPECT_EQ(Backend::get().set_codebook(""), "");
  const std::vector<float> want = TestCache(shape).evaluate(tokens);
  use(200, 0);
  EXPECT_LT(relative_distance(TestCache(shape).evaluate(tokens), want), 0.01);
  use(0, 0);
  EXPECT_GT(relative_distance(TestCache(shape).evaluate(tokens), want), 0.3);
}

TEST_F(Window, SinksAloneChangeTheResult) {
  const CacheShape shape;
  const Tokens tokens = run_of_tokens(0, 100);
  use(0, 0);
  const std::vector<float> codes = TestCache(shape).evaluate(tokens);
  use(0, kSinks);
  const std::vector<float> sinks = TestCache(shape).evaluate(tokens);
  use(0, 100);
  const std::vector<float> all = TestCache(shape).evaluate(tokens);
  EXPECT_GT(relative_distance(sinks, codes), 1e-3);
  EXPECT_GT(relative_distance(all, sinks), 1e-3);
}

TEST_F(Window, DoesNotDependOnBatchesOrThreads) {
  for (const auto& [k, v] : {std::pair{k1Bit, k2Bit}, std::pair{k2Bit, CodecSpec{}}}) {
    use(kWindow, kSinks, 1, k, v);
    expect_batches_do_not_matter({}, 200);  // saved rows, which hold the exact ones, included
  }
}

TEST_F(Window, BufferHoldsItsPool) {
  const CacheShape shape;
  use(0, 0);
  const std::size_t without = TestCache(shape).buffer_size();
  use(kWindow, kSinks, 2);
  const std::size_t with = TestCache(shape).buffer_size();
  const std::size_t rows = 2 * (kWindow + WindowSpec::kRollback + kSinks);
  const std::size_t row_bytes = 128 + 128 / 32 * sizeof(float);
  const std::size_t pool = shape.n_layers * 2 * rows * row_bytes;
  const std::size_t table = ExactWindow::table_bytes(256, rows);
  EXPECT_GE(with, without + pool + table);
  EXPECT_LE(with, without + pool + table + shape.n_layers * 2 * 64);
  EXPECT_EQ(Backend::get().cache_bytes(), with);
}

// Slots of a server: sequences interleaved in one cache, prompts of one between words of
// the other. Each must be as if it were alone in the same cells.
TEST_F(Window, SequencesInOneCacheDoNotDisturbEachOther) {
  const CacheShape shape;
  use(kWindow, kSinks, 2);
  const Tokens first = moved(run_of_tokens(0, 80, 1), 0, 1);
  const Tokens second = moved(run_of_tokens(0, 120, 2), 80, 2);
  const Tokens next = moved(run_of_tokens(80, 5, 1), 130, 1);
  TestCache alone(shape);
  evaluate_in_steps(alone, first, 20);
  const std::vector<float> want = evaluate_in_steps(alone, next, 1);
  for (const int step : {1, 40, 120}) {
    TestCache both(shape);
    evaluate_in_steps(both, first, 20);
    evaluate_in_steps(both, second, step);
    EXPECT_EQ(evaluate_in_steps(both, next, 1), want) << "other prompt in batches of " << step;
  }
}

TEST_F(Window, TakingBackTokensLeavesItWhole) {
  const CacheShape shape;
  use(kWindow, kSinks);
  TestCache straight(shape);
  straight.evaluate(run_of_tokens(0, 100));
  const std::vector<float> want = straight.evaluate(run_of_tokens(100, 1));
  TestCache drafted(shape);
  drafted.evaluate(run_of_tokens(0, 100));
  drafted.evaluate(run_of_tokens(100, WindowSpec::kRollback, 77));  // a draft of other tokens
  drafted.forget(100, WindowSpec::kRollback);
  EXPECT_EQ(drafted.evaluate(run_of_tokens(100, 1)), want);
}

// A prompt, an answer of any length, and the answer once more; then the prompt's end edited. To
// the bit as if the tokens taken back had never been there, also after saving and restoring.
TEST_F(Window, RegeneratedAnswersFindItWhole) {
  const CacheShape shape;
  Backend::get().set_window(kWindow, kSinks, 1, 80);
  use_codebook(random_codebook(shape.n_layers, k1Bit, k2Bit, shape.n_kv_heads, shape.head_dim, 21),
               "regenerate");
  TestCache straight(shape);
  straight.evaluate(run_of_tokens(0, 90));
  const std::vector<float> want_edited = straight.evaluate(run_of_tokens(90, 12, 5));
  TestCache cache(shape);
  cache.evaluate(run_of_tokens(0, 90));
  cache.evaluate(run_of_tokens(90, 10));
  const std::vector<float> want = cache.evaluate(run_of_tokens(100, 1));
  for (const int n_answer : {1, 17, 60, 120}) {
    evaluate_in_steps(cache, run_of_tokens(101, n_answer, 33), 1);
    if (n_answer == 60) {
      TestCache restored(shape);
      restore_all(cache, 161, restored, 0);
      restored.forget(100, 61);
      EXPECT_EQ(restored.evaluate(run_of_tokens(100, 1)), want) << "of a restored cache";
    }
    cache.forget(100, n_answer + 1);
    EXPECT_EQ(cache.evaluate(run_of_tokens(100, 1)), want) << "after " << n_answer << " tokens";
  }
  cache.forget(90, 11);
  EXPECT_EQ(cache.evaluate(run_of_tokens(90, 12, 5)), want_edited);
}

TEST_F(Window, SavedRowsKeepIt) {
  const CacheShape shape;
  use(kWindow, kSinks);
  TestCache original(shape);
  original.evaluate(run_of_tokens(0, 64));
  TestCache restored(shape);
  restore_all(original, 64, restored, 64);
  const std::vector<float> want = original.evaluate(run_of_tokens(64, 40));
  EXPECT_EQ(restored.evaluate(moved(run_of_tokens(64, 40), 64)), want);
}

TEST_F(Window, RowsSavedWithoutItRestoreAsCodes) {
  const CacheShape shape;
  use(0, 0);
  TestCache codes(shape);
  codes.evaluate(run_of_tokens(0, 64));
  use(kWindow, kSinks);
  TestCache restored(shape);
  restore_all(codes, 64, restored, 0);
  EXPECT_FALSE(restored.evaluate(run_of_tokens(64, 1)).empty());
}

TEST_F(Window, CopiedStreamsKeepIt) {
  CacheShape shape;
  shape.n_streams = 2;
  use(kWindow, kSinks);
  TestCache cache(shape);
  cache.evaluate(moved(run_of_tokens(0, 80, 99), shape.n_cells), 1);
  cache.evaluate(run_of_tokens(0, 50), 0);
  const std::vector<std::uint8_t> saved = cache.save(KvKind::kValue, 1, 0, 50);
  cache.copy_stream(0, 1);
  EXPECT_EQ(cache.save(KvKind::kValue, 1, shape.n_cells, 50), saved);
  const std::vector<float> want = cache.evaluate(run_of_tokens(50, 3), 0);
  EXPECT_EQ(cache.evaluate(moved(run_of_tokens(50, 3), shape.n_cells), 1), want);
}

TEST_F(Window, ShiftMovesItAlongAndMakesNoSinks) {
  const CacheShape shape;
  use(kWindow, kSinks);
  TestCache straight(shape);
  straight.evaluate(run_of_tokens(0, 100));
  TestCache shifted(shape);
  shifted.evaluate(run_of_tokens(0, 100));
  // Down by 50, so that later tokens pass through positions 0 to 2, and up again.
  std::vector<std::int32_t> amount(256, 0);
  std::fill(amount.begin() + 50, amount.begin() + 100, -50);
  ASSERT_TRUE(shifted.shift(amount));
  for (auto& value : amount) {
    value = -value;
  }
  ASSERT_TRUE(shifted.shift(amount));
  EXPECT_EQ(shifted.save(KvKind::kKey, 1, 0, 100), straight.save(KvKind::kKey, 1, 0, 100));
  EXPECT_EQ(shifted.evaluate(run_of_tokens(100, 2)), straight.evaluate(run_of_tokens(100, 2)));
}

// More sequences than it was made for: windows become shorter, nothing else happens.
TEST_F(Window, TooManySequencesShareThePool) {
  const CacheShape shape;
  use(kWindow, kSinks, 1);
  TestCache cache(shape);
  for (int round = 0; round < 5; round++) {
    for (int sequence = 0; sequence < 4; sequence++) {
      const Tokens tokens =
          moved(run_of_tokens(round * 12, 12, static_cast<std::uint64_t>(sequence)), sequence * 60,
                sequence);
      ASSERT_FALSE(evaluate_in_steps(cache, tokens, 5).empty());
    }
  }
  std::size_t n_exact = 0;
  for (int cell = 0; cell < 240; cell++) {
    n_exact += (record_of(cache.save(KvKind::kKey, 0, cell, 1))[1] & 2U) != 0 ? 1 : 0;
  }
  EXPECT_EQ(n_exact, WindowSpec({kWindow, kSinks}).rows_per_sequence());
}

TEST_F(Window, ClearedCacheHasNone) {
  const CacheShape shape;
  use(kWindow, kSinks);
  TestCache cache(shape);
  const std::vector<float> want = cache.evaluate(run_of_tokens(0, 70));
  cache.clear();
  EXPECT_EQ(cache.save(KvKind::kKey, 0, 0, 1), std::vector<std::uint8_t>(256, 0));
  EXPECT_EQ(cache.evaluate(run_of_tokens(0, 70)), want);
}

}  // namespace
}  // namespace cqkv::device
