// CellTable against the plain rules of its header.
#include "cache/cell_table.h"

#include <array>

#include <gtest/gtest.h>

namespace cqkv {
namespace {

TEST(CellTable, NewCellsAreEmptyAndGrowthKeepsOldOnes) {
  CellTable table;
  table.grow(4);
  table.set(1, 17);
  table.grow(8);
  table.grow(2);  // never shrinks
  EXPECT_EQ(table.size(), 8U);
  EXPECT_EQ(table.bytes(), 32U);
  EXPECT_TRUE(table.holds_token(1));
  EXPECT_FALSE(table.holds_token(7));
}

TEST(CellTable, ShiftMovesTokensOnly) {
  CellTable table;
  table.grow(3);
  table.set(0, 100);
  table.set(1, CellTable::kInvalid);
  const std::array<std::int32_t, 3> shifts{-40, -40, -40};
  table.shift(0, shifts);
  EXPECT_EQ(table.at(0), 60);
  EXPECT_EQ(table.at(1), CellTable::kInvalid);
  EXPECT_EQ(table.at(2), CellTable::kEmpty);
  table.set(2, 7);
  table.shift(2, shifts);  // more shifts than cells
  EXPECT_EQ(table.at(2), -33);
  EXPECT_EQ(table.at(0), 60);
}

TEST(CellTable, OccupyKeepsAKnownPosition) {
  CellTable table;
  table.grow(3);
  table.set(0, 5);
  table.set(1, CellTable::kInvalid);
  for (std::size_t cell = 0; cell < 3; cell++) {
    table.occupy(cell);
  }
  EXPECT_EQ(table.at(0), 5);
  EXPECT_EQ(table.at(1), 0);
  EXPECT_EQ(table.at(2), 0);
}

TEST(CellTable, CopyAndClear) {
  CellTable table;
  table.grow(8);
  table.set(1, 9);
  table.set(2, CellTable::kInvalid);
  table.copy(0, 4, 4);
  EXPECT_EQ(table.at(5), 9);
  EXPECT_TRUE(table.any_invalid(4, 4));
  EXPECT_FALSE(table.any_invalid(4, 2));
  table.clear();
  EXPECT_FALSE(table.any_invalid(0, 8));
  EXPECT_FALSE(table.holds_token(5));
}

}  // namespace
}  // namespace cqkv
