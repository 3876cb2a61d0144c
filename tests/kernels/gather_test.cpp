// Codes of blocks whose cells are anywhere.
#include <algorithm>
#include <array>
#include <vector>

#include "codec/code_blocks.h"
#include "codec/code_pieces.h"
#include "kernels/kernel_fixture.h"

namespace cqkv::kernels {
namespace {

constexpr int kCells = 300;

using Cells = std::array<std::int32_t, kBlockCells>;

Cells run_from(int first, int step) {
  Cells cells;
  for (int t = 0; t < kBlockCells; t++) {
    cells[static_cast<std::size_t>(t)] = first + t * step;
  }
  return cells;
}

// In place, moved, taking turns, with holes, none, all in one piece, and at random.
std::vector<Cells> cases(Rng& rng) {
  std::vector<Cells> all = {run_from(64, 1), run_from(69, 1), run_from(80, 1), run_from(236, 1),
                            run_from(3, 2),  run_from(7, 4),  run_from(63, -1)};
  Cells holes = run_from(100, 1);
  for (std::size_t t = 0; t < holes.size(); t += 3) {
    holes[t] = -1;
  }
  all.push_back(holes);
  all.push_back(run_from(-100, 1));
  Cells one = run_from(40, 0);
  std::fill_n(one.begin(), 20, -1);
  all.push_back(one);
  for (int i = 0; i < 20; i++) {
    Cells cells;
    for (std::int32_t& cell : cells) {
      cell = static_cast<std::int32_t>(rng.below(kCells + 40)) - 40;
    }
    all.push_back(cells);
  }
  return all;
}

// At every level: what gather_group says of each group.
class GatherTest : public KernelTest {
 protected:
  void expect_gathered(const CodeLayout& layout, const std::uint8_t* tensor, const Cells& cells) {
    std::vector<CodePieces> found;
    add_pieces(cells.data(), &found);
    ExactBuffer<CodePieces> pieces(found.size());
    std::copy(found.begin(), found.end(), pieces.begin());
    for (int head = 0; head < layout.spec.n_kv_heads(); head++) {
      ExactBuffer<std::uint8_t> out(static_cast<std::size_t>(layout.n_groups(head)) * kBlockCells);
      GatherCodes call;
      call.codes = tensor + layout.group_offset(0, head, 0);
      call.block_bytes = layout.block_bytes();
      call.group_bytes = layout.group_bytes();
      call.n_groups = layout.n_groups(head);
      call.pieces = pieces.data();
      call.n_pieces = static_cast<int>(found.size());
      call.out = out.data();
      kernel().gather_codes(call);
      for (int g = 0; g < layout.n_groups(head); g++) {
        std::uint16_t want[kBlockCells];
        gather_group(layout, tensor, head, g, cells.data(), want);
        ASSERT_TRUE(std::equal(want, want + kBlockCells, out.data() + g * kBlockCells))
            << layout.spec.name() << ", head " << head << ", group " << g << ", first cell "
            << cells[0];
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, GatherTest, all_levels(), level_name);

TEST_P(GatherTest, CodesOfAnyCells) {
  Rng rng(1);
  for (const int group_dim : {2, 4, 8, 16}) {
    const CodeLayout layout(TensorSpec({group_dim, 8}, 2, 80));
    ExactBuffer<std::uint8_t> tensor(layout.tensor_bytes(kCells));
    std::generate(tensor.begin(), tensor.end(),
                  [&] { return static_cast<std::uint8_t>(rng.below(256)); });
    for (const Cells& cells : cases(rng)) {
      expect_gathered(layout, tensor.data(), cells);
    }
  }
}

// Sixteen cells side by side are in one piece of the cache or in two, whatever their place.
TEST(Pieces, CellsSideBySideAreInTwo) {
  for (int first = 0; first < kCells - kBlockCells; first++) {
    std::vector<CodePieces> pieces;
    add_pieces(run_from(first, 1).data(), &pieces);
    EXPECT_EQ(pieces.size(), 4U) << first;
  }
}

}  // namespace
}  // namespace cqkv::kernels
