// Gathering: codes of a block from the pieces of the cache that they are in (GatherCodes in
// coded_blocks.h), sixteen at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/coded_blocks.h"
#include "kernels/simd-inl.h"

namespace cqkv::kernels {
namespace {

inline Bytes load_piece(const std::uint8_t* at) {
  Bytes bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  return bytes;
}

// What n pieces say of kGroups groups from group `first` on.
template <int kGroups>
inline void gather_groups(const GatherCodes& call, const CodePieces* pieces, int n, int first) {
  Bytes codes[kGroups] = {};
  for (int i = 0; i < n; i++) {
    for (int p = 0; p < 2; p++) {
      const auto cell = static_cast<std::size_t>(pieces[i].cells[p]);
      const std::uint8_t* from = call.codes + cell / kBlockCells * call.block_bytes +
                                 cell % kBlockCells + first * call.group_bytes;
      const Bytes order = load_piece(pieces[i].order[p]);
      for (int g = 0; g < kGroups; g++, from += call.group_bytes) {
        codes[g] |= pick_bytes(load_piece(from), order);
      }
    }
  }
  std::uint8_t* out = call.out + first * kBlockCells + pieces->to;
  for (int g = 0; g < kGroups; g++) {
    std::memcpy(out + g * kBlockCells, &codes[g], sizeof(codes[g]));
  }
}

void gather_codes(const GatherCodes& call) noexcept {
  constexpr int kGroups = 8;
  const CodePieces* end = call.pieces + call.n_pieces;
  for (const CodePieces* pieces = call.pieces; pieces != end;) {
    int n = 1;
    while (pieces + n != end && pieces[n].to == pieces->to) {
      n++;
    }
    int group = 0;
    for (; group + kGroups <= call.n_groups; group += kGroups) {
      gather_groups<kGroups>(call, pieces, n, group);
    }
    for (; group < call.n_groups; group++) {
      gather_groups<1>(call, pieces, n, group);
    }
    pieces += n;
  }
}

}  // namespace
}  // namespace cqkv::kernels
