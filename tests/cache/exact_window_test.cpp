// The window's bookkeeping against its rule, spelled out over sequences of random
// batches; the pool's bounds; restoring, dropping and broken-off graphs. And exact rows:
// how far they are from what they stand for.
#include "cache/exact_window.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "cache/exact_row.h"
#include "core/half.h"
#include "core/rng.h"

namespace cqkv {
namespace {

// A unified cache of several sequences, written as a host would: each query sees the
// cells of its sequence up to its position.
class Host {
 public:
  Host(WindowSpec spec, std::size_t n_cells, std::size_t n_rows)
      : spec_(spec), cells_(n_cells), positions_(n_cells, -1) {
    window.configure(spec, 1, n_cells, n_rows);
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

  // A cell is exact iff it is a sink or less than window + rollback behind its newest.
  void expect_rule(const std::vector<int>& sequences) {
    std::set<std::int32_t> slots;
    for (std::size_t cell = 0; cell < cells_.size(); cell++) {
      const Cell& held = cells_[cell];
      if (std::find(sequences.begin(), sequences.end(), held.sequence) == sequences.end()) {
        continue;
      }
      const int behind = next_[held.sequence] - 1 - held.position;
      const bool want = held.position < spec_.sinks || behind < spec_.kept();
      ASSERT_EQ(window.row(cell) != ExactWindow::kNone, want)
          << "sequence " << held.sequence << ", position " << held.position << " of "
          << next_[held.sequence];
      if (want) {
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
      Host host(spec, 400, window_rows(spec, 400, 3));
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
  Host host(spec, 600, window_rows(spec, 600, 2));
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
  Host host(spec, 200, 20);
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
  Host host(spec, 100, window_rows(spec, 100, 1));
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
  window.configure({2, 0}, 2, 10, 3);
  for (std::size_t cell = 0; cell < 5; cell++) {
    EXPECT_GE(window.restore(cell, cell == 0, static_cast<std::int32_t>(cell)), 0);
  }
  std::vector<bool> exact;
  for (std::size_t cell = 0; cell < 5; cell++) {
    exact.push_back(window.row(cell) != ExactWindow::kNone);
  }
  EXPECT_EQ(exact, std::vector<bool>({true, false, false, true, true})) << "a sink outlives others";
  EXPECT_EQ(window.restore(12, false, 0), 3) << "streams have their own part of the pool";
  window.drop(3);
  EXPECT_EQ(window.row(3), ExactWindow::kNone);
  window.clear();
  EXPECT_EQ(window.row(0), ExactWindow::kNone);
}

TEST(ExactWindow, RowsAreBoundedByCells) {
  EXPECT_EQ(window_rows({128, 4}, 100000, 4), 4U * (128 + 16 + 4));
  EXPECT_EQ(window_rows({128, 4}, 100, 4), 100U);
  EXPECT_EQ(window_rows({0, 0}, 100, 4), 0U);
  EXPECT_EQ(window_rows({0, 4}, 100, 2), 8U);
}

TEST(ExactWindow, MillionsOfCells) {
  const std::size_t n_cells = std::size_t{1} << 22;
  ExactWindow window;
  window.configure({128, 4}, 2, n_cells, window_rows({128, 4}, n_cells, 1));
  const std::size_t cell = 2 * n_cells - 1;
  EXPECT_GE(window.restore(cell, false, 1 << 21), 148) << "the second stream's part";
  EXPECT_NE(window.row(cell), ExactWindow::kNone);
  window.drop(cell);
  EXPECT_EQ(window.row(cell), ExactWindow::kNone);
  const CodedTensorSize size = CodedTensorSize::of({{8, 8}, 128, 128}, n_cells, 1U << 20U);
  EXPECT_EQ(size.code_bytes, n_cells * 16384 / 8);
  EXPECT_EQ(size.pool_bytes, (std::size_t{1} << 20) * (16384 + 512 * 4));
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
