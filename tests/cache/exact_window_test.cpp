// The window's bookkeeping against its rule, spelled out over sequences of random
// batches; the pool's bounds; restoring, dropping and broken-off graphs. And exact rows:
// how far they are from what they stand for.
#include "cache/exact_window.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "codec/exact_row.h"
#include "core/half.h"
#include "core/rng.h"
#include "support/codebooks.h"

namespace cqkv {
namespace {

// A unified cache of several sequences, written as a host would: each query sees the
// cells of its sequence up to its position.
class Host {
 public:
  // Room for what n_sequences need, and for n_spare rows.
  Host(WindowSpec spec, std::size_t n_cells, std::size_t n_sequences, std::size_t n_spare = 0)
      : Host(spec, n_cells,
             WindowPool{.n_rows = spec.rows_per_sequence() * n_sequences + n_spare,
                        .n_spare = n_spare}) {}

  Host(WindowSpec spec, std::size_t n_cells, WindowPool pool)
      : spec_(spec), cells_(n_cells), positions_(n_cells, -1) {
    window.configure(spec, 1, n_cells, pool);
  }

  // One graph: `n_tokens` of each sequence given, in any free cells.
  void evaluate(const std::vector<int>& sequences, int n_tokens, Rng& rng, bool moved = true) {
    std::vector<std::int32_t> positions;
    std::vector<std::size_t> cells;
    std::vector<int> owners;
    for (const int sequence : sequences) {
      for (int i = 0; i < n_tokens; i++) {
        const std::size_t cell = free_cell(rng);
        cells_[cell] = {sequence, next_[sequence]};
        positions_[cell] = next_[sequence];
        positions.push_back(next_[sequence]++);
        cells.push_back(cell);
        owners.push_back(sequence);
      }
    }
    window.begin(positions, cells);
    ASSERT_TRUE(window.needs_plan());
    std::vector<std::uint16_t> mask(positions.size() * cells_.size(), 0xFC00);
    for (std::size_t i = 0; i < positions.size(); i++) {
      for (std::size_t cell = 0; cell < cells_.size(); cell++) {
        if (cells_[cell].sequence == owners[i] && cells_[cell].position <= positions[i]) {
          mask[i * cells_.size() + cell] = 0;
        }
      }
    }
    window.plan(0, cells_.size(), positions, positions_.data(),
                {reinterpret_cast<const std::uint8_t*>(mask.data()), cells_.size() * 2});
    window.finish_plan();
    ASSERT_FALSE(window.needs_plan());
    std::set<std::size_t> slots;
    for (const auto& move : window.moves()) {
      ASSERT_TRUE(slots.insert(move.slot).second) << "two tokens in one slot";
      ASSERT_LT(move.slot, window.n_slots());
    }
    window.commit(moved);
  }

  void remove(int sequence) {
    for (auto& cell : cells_) {
      cell = cell.sequence == sequence ? Cell() : cell;
    }
    next_[sequence] = 0;
  }

  // The last n tokens of a sequence go.
  void take_back(int sequence, int n) {
    next_[sequence] -= n;
    for (auto& cell : cells_) {
      cell = cell.sequence == sequence && cell.position >= next_[sequence] ? Cell() : cell;
    }
  }

  // Which of the n tokens before the end of a sequence have rows, as "1101".
  std::string rows_before_end(int sequence, int n) const {
    std::string result(static_cast<std::size_t>(n), '0');
    const int first = next_.at(sequence) - n;
    for (std::size_t cell = 0; cell < cells_.size(); cell++) {
      if (cells_[cell].sequence == sequence && cells_[cell].position >= first &&
          window.row(cell) != ExactWindow::kNone) {
        result[static_cast<std::size_t>(cells_[cell].position - first)] = '1';
      }
    }
    return result;
  }

  // A cell is exact if it is a sink or less than window + rollback behind its newest.
  void expect_rule(const std::vector<int>& sequences) {
    std::set<std::int32_t> slots;
    for (std::size_t cell = 0; cell < cells_.size(); cell++) {
      const Cell& held = cells_[cell];
      if (std::find(sequences.begin(), sequences.end(), held.sequence) == sequences.end()) {
        continue;
      }
      const int behind = next_[held.sequence] - 1 - held.position;
      const bool want = held.position < spec_.sinks || behind < spec_.kept();
      const bool exact = window.row(cell) != ExactWindow::kNone;
      ASSERT_TRUE(exact || !want) << "sequence " << held.sequence << ", position " << held.position
                                  << " of " << next_[held.sequence];
      if (exact) {
        ASSERT_LT(window.row(cell), static_cast<std::int32_t>(window.n_slots()));
        ASSERT_TRUE(slots.insert(window.row(cell)).second) << "two cells in one slot";
        ASSERT_EQ(window.is_sink(cell), held.position < spec_.sinks);
      }
    }
  }

  ExactWindow window;

 private:
  struct Cell {
    int sequence = -1;
    int position = 0;
  };

  std::size_t free_cell(Rng& rng) {
    std::size_t cell = rng.below(cells_.size());
    while (cells_[cell].sequence >= 0) {
      cell = (cell + 1) % cells_.size();
    }
    return cell;
  }

  WindowSpec spec_;
  std::vector<Cell> cells_;
  std::vector<std::int32_t> positions_;
  std::map<int, int> next_;
};

TEST(ExactWindow, FollowsTheRule) {
  for (const WindowSpec spec : {WindowSpec{10, 2}, {0, 3}, {25, 0}, {1, 1}}) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      Rng rng(seed);
      Host host(spec, 400, 3);
      for (int round = 0; round < 40; round++) {
        std::vector<int> sequences;
        for (int sequence = 0; sequence < 3; sequence++) {
          if (rng.uniform() < 0.6) {
            sequences.push_back(sequence);
          }
        }
        host.evaluate(sequences, 1 + static_cast<int>(rng.below(4)), rng);
        host.expect_rule({0, 1, 2});
      }
      EXPECT_EQ(host.window.n_evicted_in_use(), 0U);
    }
  }
}

// Requests come and go in one slot while another sequence is in use: what is left of the
// old ones must give way, not the window in use.
TEST(ExactWindow, LeftoversGiveWay) {
  const WindowSpec spec{10, 2};
  Rng rng(5);
  Host host(spec, 600, 2);
  for (int request = 1; request < 10; request++) {
    for (int round = 0; round < 8; round++) {
      host.evaluate({0, request}, 1 + round % 3, rng);
      host.expect_rule({0, request});
    }
    host.remove(request);
  }
  EXPECT_EQ(host.window.n_evicted_in_use(), 0U);
}

TEST(ExactWindow, SmallPoolKeepsTheNewest) {
  const WindowSpec spec{30, 2};
  Rng rng(6);
  Host host(spec, 200, WindowPool{.n_rows = 20, .n_spare = 0});
  host.evaluate({0}, 60, rng);
  EXPECT_GT(host.window.n_evicted_in_use(), 0U);
  std::size_t n_exact = 0;
  std::size_t n_sinks = 0;
  for (std::size_t cell = 0; cell < 200; cell++) {
    n_exact += host.window.row(cell) >= 0 ? 1 : 0;
    n_sinks += host.window.is_sink(cell) ? 1 : 0;
  }
  EXPECT_EQ(n_exact, 20U);
  EXPECT_EQ(n_sinks, 2U);
}

// Rows of a broken-off graph were not moved in every layer: its tokens, and those that
// made room for them, are coded.
TEST(ExactWindow, BrokenOffGraphLeavesCodes) {
  const WindowSpec spec{10, 0};
  Rng rng(7);
  Host host(spec, 100, 1);
  host.evaluate({0}, 30, rng);
  host.evaluate({0}, 5, rng, false);
  std::size_t n_exact = 0;
  for (std::size_t cell = 0; cell < 100; cell++) {
    n_exact += host.window.row(cell) >= 0 ? 1 : 0;
  }
  EXPECT_EQ(n_exact, 26U - 5U);
  host.evaluate({0}, 30, rng);
  host.expect_rule({0});
}

TEST(ExactWindow, RestoreEvictsWhatWasSeenLongestAgo) {
  ExactWindow window;
  window.configure({2, 0}, 2, 10, {.n_rows = 3, .n_spare = 0});
  for (std::size_t cell = 0; cell < 5; cell++) {
    EXPECT_GE(window.restore(cell, {.sink = cell == 0}, static_cast<std::int32_t>(cell)), 0);
  }
  std::vector<bool> exact;
  for (std::size_t cell = 0; cell < 5; cell++) {
    exact.push_back(window.row(cell) != ExactWindow::kNone);
  }
  EXPECT_EQ(exact, std::vector<bool>({true, false, false, true, true})) << "a sink outlives others";
  EXPECT_EQ(window.restore(12, {}, 0), 3) << "streams have their own part of the pool";
  window.drop(3);
  EXPECT_EQ(window.row(3), ExactWindow::kNone);
  window.clear();
  EXPECT_EQ(window.row(0), ExactWindow::kNone);
}

// A regenerated answer, an edited message and a rejected draft lead back to places around which
// rows are marked, however far these are; without room for them the nearest rows are there.
TEST(ExactWindow, TakingBackFindsTheWindow) {
  const WindowSpec spec{10, 2};
  const std::string whole(10, '1');
  for (const int n_answer : {1, 16, 17, 60, 300}) {
    Rng rng(8);
    Host host(spec, 1000, 1, 40);
    host.evaluate({0}, 100, rng);  // a prompt
    for (int i = 0; i < 30; i++) {
      host.evaluate({0}, 1, rng);
    }
    host.evaluate({0}, 20, rng);  // the next message
    for (int i = 0; i < n_answer; i++) {
      host.evaluate({0}, 1, rng);
      host.expect_rule({0});
    }
    host.take_back(0, n_answer + 1);
    EXPECT_EQ(host.rows_before_end(0, 10), whole) << "regenerated after " << n_answer;
    host.evaluate({0}, 1, rng);
    for (int i = 0; i < n_answer; i++) {
      host.evaluate({0}, 1, rng);
    }
    host.take_back(0, n_answer + 1);
    EXPECT_EQ(host.rows_before_end(0, 10), whole) << "and once more";
    host.take_back(0, 19);
    EXPECT_EQ(host.rows_before_end(0, 10), whole) << "edited after " << n_answer;
  }
}

TEST(ExactWindow, RejectedDraftsLeaveTheWindow) {
  const WindowSpec spec{10, 2};
  for (const int n_draft : {2, 17, 65}) {
    Rng rng(9);
    Host host(spec, 1000, 1, 100);
    host.evaluate({0}, 100, rng);
    for (int i = 0; i < 30; i++) {
      const int n_accepted = i % (n_draft + 1);
      host.evaluate({0}, n_draft, rng);
      host.take_back(0, n_draft - n_accepted);
      ASSERT_EQ(host.rows_before_end(0, 10), std::string(10, '1'))
          << n_accepted << " of " << n_draft << " accepted";
    }
  }
}

// A prompt in several batches is one prompt: its middle takes no room from what was marked before.
TEST(ExactWindow, LongPromptsKeepTheirBeginningMarked) {
  const WindowSpec spec{10, 2};
  Rng rng(10);
  Host host(spec, 2000, 1, 2 * 26);
  host.evaluate({0}, 100, rng);
  host.evaluate({0}, 1, rng);
  for (int i = 0; i < 5; i++) {
    host.evaluate({0}, 200, rng);
  }
  for (int i = 0; i < 100; i++) {
    host.evaluate({0}, 1, rng);
  }
  host.take_back(0, 100);
  EXPECT_EQ(host.rows_before_end(0, 10), std::string(10, '1'));
  host.take_back(0, 1000);
  EXPECT_EQ(host.rows_before_end(0, 10), std::string(10, '1'));
}

// The other sequences' windows are worth more than marks; a sequence that rests keeps its window.
TEST(ExactWindow, MarksTakeNoWindowAway) {
  const WindowSpec spec{10, 2};
  Rng rng(11);
  Host host(spec, 4000, 3, 30);
  host.evaluate({0}, 50, rng);
  host.evaluate({1}, 50, rng);
  for (int i = 0; i < 20; i++) {
    host.evaluate({2}, 3 + i, rng);
    host.evaluate({2}, 1, rng);
    host.expect_rule({0, 1, 2});
  }
  EXPECT_EQ(host.window.n_evicted_in_use(), 0U);
}

TEST(ExactWindow, SavedMarksComeBackInOrder) {
  ExactWindow window;
  window.configure({2, 0}, 1, 20, {.n_rows = 5, .n_spare = 3});
  for (std::size_t cell = 0; cell < 5; cell++) {
    const ExactWindow::Saved saved{
        .sink = false, .needed = cell == 4, .mark_age = static_cast<std::uint16_t>(cell)};
    window.restore(cell, saved, 10);
    EXPECT_EQ(window.saved(cell).mark_age, cell);
    EXPECT_EQ(window.saved(cell).needed, cell == 4);
  }
  window.restore(10, {}, 11);
  EXPECT_EQ(window.row(0), ExactWindow::kNone) << "the row that is neither marked nor needed";
}

Codebook one_bit() {
  return testing::random_codebook(2, {8, 8}, {8, 8}, 3, 64);
}

TEST(WindowPool, IsWhatSequencesNeedAndAQuarterOfTheCodes) {
  const Codebook codebook = one_bit();
  // A cell's codes take 24 bytes, a row 192 + 6 * 4.
  const auto pool = [&](const WindowSpec& spec, std::size_t n_cells, std::size_t n_sequences) {
    return window_pool(spec, codebook, n_cells, n_sequences);
  };
  const std::size_t quarter = 100000 * 24 / 4 / 216;
  EXPECT_EQ(pool({128, 4}, 100000, 4),
            (WindowPool{4 * (128 + 4) + quarter, quarter - std::size_t{4 * 16}}));
  EXPECT_EQ(pool({128, 4}, 1024, 4), (WindowPool{4 * (128 + 16 + 4), 0})) << "never below 16";
  EXPECT_EQ(pool({128, 4}, 100, 4), (WindowPool{100, 0})) << "no more rows than cells";
  EXPECT_EQ(pool({128, 4, 0}, 100000, 4), (WindowPool{4 * (128 + 16 + 4), 0}));
  EXPECT_EQ(pool({128, 4, 100}, 100000, 4), (WindowPool{4 * (128 + 100 + 4), 4 * 84}));
  EXPECT_EQ(pool({0, 0}, 100000, 4), WindowPool());
  EXPECT_EQ(pool({0, 4}, 100000, 2), (WindowPool{8, 0})) << "sinks alone need no spare rows";
}

TEST(ExactWindow, MillionsOfCells) {
  const std::size_t n_cells = std::size_t{1} << 22;
  ExactWindow window;
  window.configure({128, 4}, 2, n_cells, window_pool({128, 4, 0}, one_bit(), n_cells, 1));
  const std::size_t cell = 2 * n_cells - 1;
  EXPECT_GE(window.restore(cell, {}, 1 << 21), 148) << "the second stream's part";
  EXPECT_NE(window.row(cell), ExactWindow::kNone);
  window.drop(cell);
  EXPECT_EQ(window.row(cell), ExactWindow::kNone);
  const CodedTensorSize size =
      CodedTensorSize::of(CodeLayout(TensorSpec({8, 8}, 128, 128)), n_cells, 1U << 20U);
  EXPECT_EQ(size.code_bytes, n_cells * 16384 / 8);
  EXPECT_EQ(size.pool_bytes, (std::size_t{1} << 20) * (16384 + 512 * 4));
}

// The device knows tensors by their addresses.
TEST(ExactWindow, TensorsWithoutCodesTakeRoom) {
  const CodeLayout layout(TensorSpec(8, {0, 0}, 64));
  EXPECT_EQ(layout.tensor_bytes(1000), 0U);
  EXPECT_GT(CodedTensorSize::of(layout, 1000, 0).total(), 0U);
  EXPECT_EQ(CodedTensorSize::of(layout, 1000, 3).pool_offset(), 0U);
}

TEST(ExactRow, IsOffByHalfAStep) {
  for (const int n_channels : {1, 31, 32, 33, 80, 192}) {
    const ExactRowLayout layout{n_channels};
    Rng rng(static_cast<std::uint64_t>(n_channels));
    std::vector<float> row(static_cast<std::size_t>(n_channels));
    std::vector<float> decoded(row.size());
    for (std::size_t i = 0; i < row.size(); i++) {
      row[i] = static_cast<float>(rng.normal()) * (i % 40 == 7 ? 100.0F : 1.0F);
      decoded[i] = static_cast<float>(rng.normal());
    }
    std::vector<std::uint8_t> exact(layout.row_bytes());
    write_exact_row(layout, row.data(), decoded.data(), exact.data());
    for (int first = 0; first < n_channels; first += 7) {
      const int n = std::min(45, n_channels - first);
      std::vector<float> got(decoded.begin() + first, decoded.begin() + first + n);
      add_exact_row(layout, exact.data(), first, n, got.data());
      for (int i = 0; i < n; i++) {
        float scale = 0;
        std::memcpy(&scale, exact.data() + (first + i) / 32 * 4, 4);
        ASSERT_NEAR(got[static_cast<std::size_t>(i)], row[static_cast<std::size_t>(first + i)],
                    scale / 2 + 1e-5F)
            << n_channels << " channels, " << first + i;
      }
    }
  }
}

TEST(ExactRow, SurvivesWhatIsNotFiniteAndWhatIsNothing) {
  const ExactRowLayout layout{64};
  std::vector<float> row(64, 1.0F);
  row[40] = 3.0F;
  row[20] = 2.0F;  // beside the wild one: keeps its code
  const std::vector<float> decoded(64, 1.0F);
  for (const float wild : {NAN, INFINITY, -INFINITY, 1e5F, 1e30F}) {
    for (const std::size_t where : {0U, 19U, 31U}) {
      row[where] = wild;
      std::vector<std::uint8_t> exact(layout.row_bytes(), 0xFF);
      write_exact_row(layout, row.data(), decoded.data(), exact.data());
      std::vector<float> got = decoded;
      add_exact_row(layout, exact.data(), 0, 64, got.data());
      for (int i = 0; i < 64; i++) {
        ASSERT_FLOAT_EQ(got[static_cast<std::size_t>(i)], i == 40 ? 3.0F : 1.0F) << wild << i;
      }
      row[where] = 1.0F;
    }
  }
}

}  // namespace
}  // namespace cqkv
