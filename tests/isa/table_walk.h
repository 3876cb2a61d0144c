// Walks the tables of one kind of kernel through every level there is, also those that this
// machine lacks: nothing is run, so nothing but the choice is tested.
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "isa/select.h"

namespace cqkv::testing {

inline bool at_or_below(isa::Level level, isa::Level limit) {
  while (limit != level && limit != isa::Level::kScalar) {
    limit = isa::level_below(limit);
  }
  return limit == level;
}

/// Each level must get a table that it can run, and none worse than the level below gets.
template <typename TableFor>
void walk_levels(const TableFor& table_for, const std::string& kind) {
  for (const isa::Level level : isa::all_levels()) {
    SCOPED_TRACE(kind + " at " + std::string(isa::level_name(level)));
    const isa::Level own = table_for(level).level;
    const isa::Level below = table_for(isa::level_below(level)).level;
    EXPECT_TRUE(at_or_below(own, level)) << isa::level_name(own);
    EXPECT_TRUE(at_or_below(below, own))
        << isa::level_name(own) << " after " << isa::level_name(below);
  }
}

}  // namespace cqkv::testing
