// See code_pieces.h.
#include "codec/code_pieces.h"

#include <algorithm>
#include <cstring>

namespace cqkv {
namespace {

using kernels::CodePieces;
using kernels::kPieceCells;

// The pieces of sixteen cells.
struct Pieces {
  int n = 0;
  std::int32_t cells[kPieceCells] = {};
  std::uint8_t order[kPieceCells][kPieceCells];

  explicit Pieces(const std::int32_t* of) {
    std::memset(order, kernels::kNoCell, sizeof(order));
    for (int i = 0; i < kPieceCells; i++) {
      if (of[i] >= 0) {
        const std::int32_t first = of[i] / kPieceCells * kPieceCells;
        order[find(first)][i] = static_cast<std::uint8_t>(of[i] - first);
      }
    }
  }

  // Mostly that of the cell before.
  int find(std::int32_t first) {
    int piece = n - 1;
    while (piece >= 0 && cells[piece] != first) {
      piece--;
    }
    if (piece < 0) {
      piece = n++;
      cells[piece] = first;
    }
    return piece;
  }
};

}  // namespace

void add_pieces(const std::int32_t* cells, std::vector<CodePieces>* pieces) {
  for (int to = 0; to < kernels::kBlockCells; to += kPieceCells) {
    const Pieces found(cells + to);
    // Even of none there are two, so that zeros are written. Behind the last stands the one before
    // again, with no cells.
    for (int piece = 0; piece == 0 || piece < found.n; piece += 2) {
      CodePieces two;
      two.to = static_cast<std::uint8_t>(to);
      for (int p = 0; p < 2; p++) {
        two.cells[p] = found.cells[piece + p < found.n ? piece + p : piece];
        std::copy_n(found.order[piece + p], kPieceCells, two.order[p]);
      }
      pieces->push_back(two);
    }
  }
}

}  // namespace cqkv
