// The scalar level: complete, compiled for the platform's baseline, and readable;
// it is the specification of every kernel.
#include <cstring>

#include "kernels/kernel_table.h"

namespace cqkv::kernels {
namespace {

void encode_group(const float* table, int group_dim, int n_padded, const float* rows,
                  std::size_t row_stride, std::size_t n_rows, std::uint16_t* codes,
                  std::size_t code_stride) noexcept {
  for (std::size_t r = 0; r < n_rows; r++) {
    int best = 0;
    float best_distance = 0;
    for (int i = 0; i < n_padded; i++) {
      float distance = 0;
      for (int j = 0; j < group_dim; j++) {
        const float difference = rows[r * row_stride + j] - table[j * n_padded + i];
        distance += difference * difference;
      }
      if (i == 0 || distance < best_distance) {
        best = i;
        best_distance = distance;
      }
    }
    codes[r * code_stride] = static_cast<std::uint16_t>(best);
  }
}

}  // namespace

const KernelTable kScalarTable = {"scalar", encode_group, nullptr, nullptr, nullptr,
                                  nullptr,  nullptr,      nullptr, nullptr};

}  // namespace cqkv::kernels
