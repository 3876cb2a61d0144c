// Which blocks of positions a call's queries share, and that it does not matter for results
// which cells hold a sequence.
#include "attention/plan/sequence_views.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "attention/attention_case.h"

namespace cqkv {
namespace {

using Cell = std::int32_t;

// Masks and positions alone. sees[query] lists cells.
class ViewsTest : public ::testing::Test {
 protected:
  void build(const std::vector<Cell>& positions, const std::vector<std::vector<Cell>>& sees) {
    positions_ = positions;
    mask_.assign(sees.size() * positions.size(), kHalfMinusInfinity);
    for (std::size_t i = 0; i < sees.size(); i++) {
      for (const Cell cell : sees[i]) {
        mask_[i * positions.size() + static_cast<std::size_t>(cell)] = 0;
      }
    }
    call_.n_queries = static_cast<int>(sees.size());
    call_.n_cells = positions.size();
    call_.positions = positions_.data();
    call_.mask = reinterpret_cast<const std::uint8_t*>(mask_.data());
    call_.mask_bytes = positions.size() * sizeof(std::uint16_t);
    views_.build(call_);
  }

  // Queries of each view.
  std::vector<int> queries() const {
    std::vector<int> n;
    for (const SequenceView& view : views_.views()) {
      n.push_back(view.n_queries);
    }
    return n;
  }

  // Every cell that a query sees stands in its view, once, where its position says; blocks
  // ascend; ranges are those of kRangePositions.
  void expect_sound(const std::vector<std::vector<Cell>>& sees) {
    for (const SequenceView& view : views_.views()) {
      std::set<Cell> cells;
      const int first = view.first_block;
      for (int range = view.first_range; range < view.first_range + view.n_ranges; range++) {
        for (int b = views_.range_begin(range); b < views_.range_end(range); b++) {
          const ViewBlock& block = views_.block(b);
          if (b > first) {
            const ViewBlock& before = views_.block(b - 1);
            EXPECT_LT(std::pair(before.base, before.layer), std::pair(block.base, block.layer));
          }
          const std::int64_t range_base = views_.block(views_.range_begin(range)).base;
          EXPECT_EQ(block.base >> 9, range_base >> 9);
          for (int t = 0; t < kBlockCells; t++) {
            const Cell cell = views_.cell(block, t);
            if (cell >= 0) {
              EXPECT_EQ(positions_[static_cast<std::size_t>(cell)], block.base + t);
              EXPECT_TRUE(cells.insert(cell).second) << cell;
              EXPECT_TRUE(block.block < 0 || cell == block.block * kBlockCells + t);
              if (view.n_queries == 1) {
                const auto& own = sees[static_cast<std::size_t>(view.first_query)];
                const auto rank = std::count_if(own.begin(), own.end(), [&](Cell other) {
                  return other < cell && positions_[static_cast<std::size_t>(other)] ==
                                             positions_[static_cast<std::size_t>(cell)];
                });
                EXPECT_EQ(block.layer, rank) << "cell " << cell;
              }
            }
          }
        }
      }
      for (int i = view.first_query; i < view.first_query + view.n_queries; i++) {
        for (const Cell cell : sees[static_cast<std::size_t>(i)]) {
          EXPECT_TRUE(cells.count(cell)) << "query " << i << ", cell " << cell;
        }
      }
    }
  }

  std::vector<Cell> positions_;
  std::vector<std::uint16_t> mask_;
  AttentionCall call_;
  SequenceViews views_;
};

std::vector<Cell> run_of(Cell first, Cell n) {
  std::vector<Cell> cells(static_cast<std::size_t>(n));
  std::iota(cells.begin(), cells.end(), first);
  return cells;
}

// Everything that views depend on, one after the other; what has not changed is known again.
TEST_F(ViewsTest, ChangedInputsAreKnownAsSuch) {
  const std::vector<std::vector<Cell>> sees = {run_of(0, 150), run_of(0, 151)};
  build(run_of(0, 200), sees);
  ViewInputs inputs;
  EXPECT_FALSE(inputs.same(call_));
  inputs.keep(call_);
  EXPECT_TRUE(inputs.same(call_));
  const std::vector<std::uint16_t> elsewhere = mask_;
  AttentionCall other = call_;
  other.mask = reinterpret_cast<const std::uint8_t*>(elsewhere.data());
  EXPECT_TRUE(inputs.same(other));
  for (const std::size_t at : {std::size_t{0}, mask_.size() - 1}) {
    mask_[at] ^= 0xFC00;
    EXPECT_FALSE(inputs.same(call_)) << "mask element " << at;
    mask_[at] ^= 0xFC00;
  }
  positions_.back()++;
  EXPECT_FALSE(inputs.same(call_));
  positions_.back()--;
  EXPECT_TRUE(inputs.same(call_));
  other = call_;
  other.n_cells--;
  EXPECT_FALSE(inputs.same(other));
  other = call_;
  other.n_queries--;
  EXPECT_FALSE(inputs.same(other));
  other = call_;
  other.mask = nullptr;
  EXPECT_FALSE(inputs.same(other));
  other = call_;
  other.positions = nullptr;
  EXPECT_FALSE(inputs.same(other));
  inputs.keep(other);
  EXPECT_TRUE(inputs.same(other));
  EXPECT_FALSE(inputs.same(call_));
  inputs.forget();
  EXPECT_FALSE(inputs.same(other));
}

TEST_F(ViewsTest, LargeInputsAreNotKept) {
  const std::vector<std::uint16_t> mask((std::size_t{1} << 20U) + 64);
  AttentionCall call;
  call.n_queries = 2;
  call.n_cells = mask.size() / 2;
  call.mask = reinterpret_cast<const std::uint8_t*>(mask.data());
  call.mask_bytes = mask.size();
  ViewInputs inputs;
  inputs.keep(call);
  EXPECT_FALSE(inputs.same(call));
  call.n_queries = 1;
  inputs.keep(call);
  EXPECT_TRUE(inputs.same(call));
}

// One SequenceViews for several calls, each of which differs a little from the one before.
TEST_F(ViewsTest, NothingIsLeftOfTheCallBefore) {
  std::vector<std::vector<Cell>> sees = {run_of(0, 150), run_of(0, 151)};
  std::vector<Cell> positions = run_of(0, 256);
  build(positions, sees);
  build(positions, sees);
  expect_sound(sees);
  ASSERT_EQ(queries(), std::vector<int>{2});
  ASSERT_EQ(views_.views()[0].n_blocks, 3);
  sees[1].push_back(200);
  build(positions, sees);
  expect_sound(sees);
  ASSERT_EQ(views_.views()[0].n_blocks, 4);
  positions[200] = 1000;
  build(positions, sees);
  expect_sound(sees);
  ASSERT_EQ(views_.views()[0].n_ranges, 2);
}

TEST_F(ViewsTest, CausalQueriesShareBlocksInPlace) {
  std::vector<std::vector<Cell>> sees;
  for (Cell n = 180; n <= 200; n++) {
    sees.push_back(run_of(0, n));
  }
  build(run_of(0, 256), sees);
  expect_sound(sees);
  ASSERT_EQ(queries(), std::vector<int>{21});
  ASSERT_EQ(views_.views()[0].n_blocks, 4);
  for (int b = 0; b < 4; b++) {
    EXPECT_EQ(views_.block(b).block, b);
  }
  EXPECT_LT(views_.block(1).lanes, 0);
}

// A window that slides, over cells that are used again.
TEST_F(ViewsTest, SlidingWindowsShareBlocks) {
  std::vector<Cell> positions = run_of(0, 640);
  for (int t = 0; t < 100; t++) {
    positions[static_cast<std::size_t>(t)] = 640 + t;
  }
  std::vector<std::vector<Cell>> sees;
  for (Cell last = 690; last < 740; last++) {
    std::vector<Cell> cells;
    for (Cell p = last - 300; p <= last; p++) {
      cells.push_back(p % 640);
    }
    sees.push_back(cells);
  }
  build(positions, sees);
  expect_sound(sees);
  EXPECT_EQ(queries(), std::vector<int>{50});
  for (int b = 0; b < views_.views()[0].n_blocks; b++) {
    EXPECT_GE(views_.block(b).block, 0);
  }
}

TEST_F(ViewsTest, SequencesOfAUnifiedCacheAreApart) {
  std::vector<Cell> positions;
  std::vector<std::vector<Cell>> sees(6);
  for (Cell t = 0; t < 600; t++) {
    positions.push_back(t / 3);
    sees[static_cast<std::size_t>(t % 3 * 2 + 1)].push_back(t);
    if (t < 597) {
      sees[static_cast<std::size_t>(t % 3 * 2)].push_back(t);
    }
  }
  build(positions, sees);
  expect_sound(sees);
  EXPECT_EQ(queries(), (std::vector<int>{2, 2, 2}));
  for (const SequenceView& view : views_.views()) {
    EXPECT_EQ(view.n_blocks, 4);  // of 200 positions
  }
}

TEST_F(ViewsTest, CellsAtOnePositionStandInLayers) {
  std::vector<Cell> positions;
  for (Cell t = 0; t < 300; t++) {
    positions.push_back(t / 4);
  }
  const std::vector<std::vector<Cell>> sees = {run_of(0, 300), run_of(0, 300), {0, 4, 8}};
  build(positions, sees);
  expect_sound(sees);
  EXPECT_EQ(queries(), (std::vector<int>{1, 1, 1}));
  EXPECT_TRUE(views_.views()[0].layered);
  EXPECT_EQ(views_.views()[0].n_blocks, 8);
  EXPECT_FALSE(views_.views()[2].layered);
  EXPECT_EQ(views_.views()[2].n_blocks, 1);
}

// A cell whose place is taken moves to the next layer alone, not with the run that it begins.
TEST_F(ViewsTest, LayersDoNotDependOnRuns) {
  std::vector<Cell> positions(128, 500);
  positions[0] = 10;
  std::iota(positions.begin() + 64, positions.end(), 0);
  std::vector<Cell> cells = run_of(64, 64);
  cells.insert(cells.begin(), 0);
  build(positions, {cells});
  expect_sound({cells});
  ASSERT_EQ(views_.views()[0].n_blocks, 2);
  for (int t = 0; t < kBlockCells; t++) {
    EXPECT_EQ(views_.cell(views_.block(0), t), t == 10 ? 0 : 64 + t);
    EXPECT_EQ(views_.cell(views_.block(1), t), t == 10 ? 74 : -1);
  }
}

// The first query of a view sees a position once; one that sees it twice is another view.
TEST_F(ViewsTest, LayersAreOfAQueryAlone) {
  const std::vector<std::vector<Cell>> sees = {{0, 1}, {0, 1, 2, 3}, {0, 1, 2}};
  build({0, 1, 2, 2}, sees);
  expect_sound(sees);
  EXPECT_EQ(queries(), (std::vector<int>{1, 1, 1}));
}

// Up to ten queries, each of which sees a share of all cells.
std::vector<std::vector<Cell>> random_sees(Cell n_cells, double share, Rng& rng) {
  std::vector<std::vector<Cell>> sees(1 + rng.below(10));
  for (auto& cells : sees) {
    for (Cell t = 0; t < n_cells; t++) {
      if (rng.uniform() < share) {
        cells.push_back(t);
      }
    }
  }
  return sees;
}

TEST_F(ViewsTest, AnyPositionsAndMasks) {
  Rng rng(5);
  for (int round = 0; round < 50; round++) {
    const auto n_cells = static_cast<Cell>(1 + rng.below(400));
    std::vector<Cell> positions;
    for (Cell t = 0; t < n_cells; t++) {
      // The positions of cells that nobody sees may be negative; nothing breaks if they are seen.
      positions.push_back(static_cast<Cell>(
          round % 2 == 0 ? rng.below(2000) : static_cast<std::uint32_t>(rng.below(1ULL << 32U))));
    }
    const auto sees = random_sees(n_cells, 0.3, rng);
    build(positions, sees);
    expect_sound(sees);
    const std::vector<int> n = queries();
    EXPECT_EQ(std::accumulate(n.begin(), n.end(), 0), static_cast<int>(sees.size()));
  }
}

// Cells at positions of their own, in any order: queries agree whatever they see.
TEST_F(ViewsTest, DistinctPositionsAreOneView) {
  Rng rng(6);
  for (int round = 0; round < 20; round++) {
    std::vector<Cell> positions = run_of(static_cast<Cell>(rng.below(1000)), 300);
    for (std::size_t t = positions.size() - 1; t > 0; t--) {
      std::swap(positions[t], positions[rng.below(t + 1)]);
    }
    const auto sees = random_sees(300, 0.5, rng);
    build(positions, sees);
    expect_sound(sees);
    EXPECT_EQ(queries(), std::vector<int>{static_cast<int>(sees.size())});
  }
}

// Sequences that take turns as they like, each with positions from 0 on: queries that follow each
// other and are of one sequence are a view.
TEST_F(ViewsTest, EverySequenceInARowIsAView) {
  Rng rng(7);
  for (int round = 0; round < 50; round++) {
    std::vector<std::vector<Cell>> cells(3);
    std::vector<Cell> positions;
    for (Cell t = 0; t < 400; t++) {
      auto& own = cells[t < 3 ? static_cast<std::size_t>(t) : rng.below(3)];
      positions.push_back(static_cast<Cell>(own.size()));
      own.push_back(t);
    }
    std::vector<std::vector<Cell>> sees;
    std::vector<int> want;
    std::size_t before = cells.size();
    for (std::uint64_t i = 0, n = 1 + rng.below(12); i < n; i++) {
      const std::size_t sequence = rng.below(3);
      const auto& own = cells[sequence];
      sees.emplace_back(own.begin(), own.begin() + static_cast<Cell>(1 + rng.below(own.size())));
      if (sequence != before) {
        want.push_back(0);
        before = sequence;
      }
      want.back()++;
    }
    build(positions, sees);
    expect_sound(sees);
    EXPECT_EQ(queries(), want) << round;
  }
}

TEST_F(ViewsTest, NobodySeesAnything) {
  build(run_of(0, 100), {{}, {}});
  EXPECT_EQ(queries(), std::vector<int>{2});
  EXPECT_EQ(views_.views()[0].n_ranges, 0);
}

// A call whose cells lie elsewhere: cell t of the first is cell to[t] of this one.
struct MovedCall {
  MovedCall(const AttentionCall& from, const std::vector<std::size_t>& to, std::size_t n_cells)
      : call(from),
        k(move_codes(from.k, to, n_cells)),
        v(move_codes(from.v, to, n_cells)),
        positions(n_cells, 77),
        rows(n_cells, -1),
        mask(static_cast<std::size_t>(from.n_queries) * n_cells, kHalfMinusInfinity) {
    for (std::size_t t = 0; t < to.size(); t++) {
      positions[to[t]] = from.positions[t];
      rows[to[t]] = from.exact != nullptr ? from.exact->rows[t] : -1;
      for (std::size_t i = 0; i < static_cast<std::size_t>(from.n_queries); i++) {
        std::memcpy(&mask[i * n_cells + to[t]], from.mask + i * from.mask_bytes + t * 2, 2);
      }
    }
    call.n_cells = n_cells;
    call.k.data = k.data();
    call.v.data = v.data();
    call.positions = positions.data();
    call.mask = reinterpret_cast<const std::uint8_t*>(mask.data());
    call.mask_bytes = n_cells * sizeof(std::uint16_t);
    if (from.exact != nullptr) {
      exact = *from.exact;
      exact.rows = rows.data();
      call.exact = &exact;
    }
  }

  static ExactBuffer<std::uint8_t> move_codes(const CacheSide& side,
                                              const std::vector<std::size_t>& to,
                                              std::size_t n_cells) {
    if (side.codec == nullptr) {
      ExactBuffer<std::uint8_t> rows(n_cells * side.row_bytes);
      for (std::size_t t = 0; t < to.size(); t++) {
        std::memcpy(rows.data() + to[t] * side.row_bytes, side.data + t * side.row_bytes,
                    side.row_bytes);
      }
      return rows;
    }
    const CodeLayout& layout = side.codec->layout();
    ExactBuffer<std::uint8_t> moved(layout.tensor_bytes(n_cells));
    std::fill(moved.begin(), moved.end(), std::uint8_t{0xA5});
    std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
    for (std::size_t t = 0; t < to.size(); t++) {
      get_codes(layout, side.data, t, codes.data());
      put_codes(layout, moved.data(), to[t], codes.data());
    }
    return moved;
  }

  AttentionCall call;
  ExactBuffer<std::uint8_t> k;
  ExactBuffer<std::uint8_t> v;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> rows;
  std::vector<std::uint16_t> mask;
  ExactRows exact;
};

class MovedCells
    : public ::testing::TestWithParam<std::tuple<std::string, const char*, const char*>> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_isa(std::get<0>(GetParam())).ok()); }

  void TearDown() override { ASSERT_TRUE(force_isa(supported_isas().front()).ok()); }
};

INSTANTIATE_TEST_SUITE_P(Levels, MovedCells,
                         ::testing::Combine(::testing::ValuesIn(supported_isas()),
                                            ::testing::Values("8c8b", "4c9b", "2c5b", "exact"),
                                            ::testing::Values("8c8b", "exact")),
                         [](const auto& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param) + "_" +
                                  std::get<2>(test.param);
                         });

TEST_P(MovedCells, GiveTheSameBits) {
  for (const int n_queries : {1, 40}) {
    for (const bool bytes : {false, true}) {
      AttentionShape shape;
      shape.k = CodecSpec::parse(std::get<1>(GetParam())).value();
      shape.v = CodecSpec::parse(std::get<2>(GetParam())).value();
      shape.heads_per_kv = 2;
      shape.n_queries = n_queries;
      shape.n_cells = 700;
      shape.byte_tables = bytes;
      shape.exact_rows = n_queries > 1;
      if (!shape.k.exact()) {
        shape.rope = plain_rope(64, RopeMode::kNeox);
      }
      AttentionCase test(shape, 21);
      const Floats want = run_attention(test, test.call(), 1);
      // Behind another sequence, taking turns with three, in any order.
      std::vector<std::size_t> order(shape.n_cells);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::vector<std::vector<std::size_t>> places = {order, order, order};
      for (std::size_t t = 0; t < shape.n_cells; t++) {
        places[0][t] = t + 13;
        places[1][t] = 3 * t + 1;
      }
      Rng rng(3);
      for (std::size_t t = shape.n_cells - 1; t > 0; t--) {
        std::swap(places[2][t], places[2][rng.below(t + 1)]);
      }
      for (std::size_t i = 0; i < places.size(); i++) {
        const std::size_t n_cells = *std::max_element(places[i].begin(), places[i].end()) + 1 + i;
        const MovedCall moved(test.call(), places[i], n_cells);
        const Floats got = run_attention(test, moved.call, 2);
        ASSERT_TRUE(same_bits(got, want))
            << n_queries << " queries, bytes " << bytes << ", places " << i;
      }
    }
  }
}

// Cells of one position, whose order is kept.
TEST_P(MovedCells, OfOnePositionGiveTheSameBits) {
  AttentionShape shape;
  shape.k = CodecSpec::parse(std::get<1>(GetParam())).value();
  shape.v = CodecSpec::parse(std::get<2>(GetParam())).value();
  shape.n_cells = 300;
  shape.byte_tables = true;
  if (!shape.k.exact()) {
    shape.rope = plain_rope(64, RopeMode::kNeox);
  }
  AttentionCase test(shape, 22);
  std::vector<std::size_t> places(shape.n_cells);
  for (std::size_t t = 0; t < shape.n_cells; t++) {
    test.positions()[t] = static_cast<std::int32_t>(t < 40 ? 3 * t : t - 40);
    places[t] = 2 * t + 1;
  }
  const Floats want = run_attention(test, test.call(), 1);
  const MovedCall moved(test.call(), places, 2 * shape.n_cells);
  const Floats got = run_attention(test, moved.call, 2);
  EXPECT_TRUE(same_bits(got, want));
}

// Sequences of 1, 2 and 4 ranges in one call, in many orders: ranges are split among threads, and
// the short ones have fewer. Each query alone is what it is to be.
TEST_P(MovedCells, SequencesOfUnequalLengthDoNotMeet) {
  std::vector<std::size_t> lengths = {1, 64, 2048, 700};
  do {
    AttentionShape shape;
    shape.k = CodecSpec::parse(std::get<1>(GetParam())).value();
    shape.v = CodecSpec::parse(std::get<2>(GetParam())).value();
    shape.n_queries = static_cast<int>(lengths.size());
    shape.n_cells = 1 + 64 + 2048 + 700;
    shape.byte_tables = true;
    if (!shape.k.exact()) {
      shape.rope = plain_rope(64, RopeMode::kNeox);
    }
    AttentionCase test(shape, 23);
    std::size_t first = 0;
    for (std::size_t i = 0; i < lengths.size(); i++) {
      for (std::size_t t = 0; t < shape.n_cells; t++) {
        const bool own = t >= first && t < first + lengths[i];
        test.mask()[i * shape.n_cells + t] = own ? 0 : kHalfMinusInfinity;
        if (own) {
          test.positions()[t] = static_cast<std::int32_t>(t - first);
        }
      }
      first += lengths[i];
    }
    const AttentionCall call = test.call();
    Floats want = run_attention(test, call, 1);
    const std::size_t row = want.size() / lengths.size();
    for (std::size_t i = 0; i < lengths.size(); i++) {
      const Floats out = run_attention(test, part_of(call, static_cast<int>(i), 1));
      ASSERT_EQ(std::memcmp(&out[i * row], &want[i * row], row * sizeof(float)), 0) << i;
    }
    for (const int n_threads : {2, 8}) {
      const Floats got = run_attention(test, call, n_threads);
      ASSERT_TRUE(same_bits(got, want)) << n_threads;
    }
  } while (std::next_permutation(lengths.begin(), lengths.end()));
}

}  // namespace
}  // namespace cqkv
