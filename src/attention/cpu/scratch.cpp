// See scratch.h.
#include "attention/cpu/scratch.h"

#include <algorithm>

namespace cqkv {
namespace {

// Of the codes of one block of any KV head.
std::size_t unpacked_bytes(const CacheSide& side) {
  const TensorSpec& spec = side.codec->spec();
  int n_groups = 0;
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    n_groups = std::max(n_groups,
                        spec.head_dim() / side.codec->tables()->entry_dim(spec.group_dim(kv_head)));
  }
  return static_cast<std::size_t>(n_groups) * unpacked_group_bytes(spec.code_bits());
}

}  // namespace

void Scratch::take_bytes(const AttentionCall& call, const Plan& plan, Carver& carver) {
  const std::size_t rows_of_task = static_cast<std::size_t>(plan.kv_per_task) * plan.tile_rows;
  const std::size_t chunk_rows = static_cast<std::size_t>(plan.chunk_blocks) * plan.tile_rows;
  const auto padded = static_cast<std::size_t>(plan.padded_pairs);
  const auto chunk = static_cast<std::size_t>(plan.chunk_blocks);
  std::size_t code_bytes = 0;
  std::size_t kernel_bytes = 0;
  if (plan.byte_keys) {
    pairs = carver.take<float>(rows_of_task * 2 * padded);
    factors = carver.take<float>(rows_of_task);
    chunk_factors = carver.take<float>(chunk_rows);
    packed_rows = carver.take<std::uint32_t>(chunk_rows * padded);
    row_angles = carver.take<float>(chunk * 2 * padded);
    placed_angles = carver.take<float>(2 * padded);
    code_bytes = unpacked_bytes(call.k);
    kernel_bytes = kernels::score_scratch_bytes(call.head_dim_k, plan.padded_pairs);
  }
  if (plan.byte_values) {
    weights = carver.take<float>(chunk_rows);
    probabilities = carver.take<std::uint8_t>(chunk_rows * kBlockCells);
    code_bytes = std::max(code_bytes, unpacked_bytes(call.v));
  }
  if (plan.byte_sums()) {
    // Not by the keys' byte tables: they may have none.
    const CodeLayout& layout = call.k.codec->layout();
    code_bytes = std::max(code_bytes, static_cast<std::size_t>(layout.n_groups(0)) *
                                          unpacked_group_bytes(layout.code_bits()));
    take_byte_sums(call, plan, carver);
  }
  unpacked = carver.take<std::uint8_t>(chunk * code_bytes);
  kernel = carver.take<std::uint8_t>(kernel_bytes);
}

void Scratch::take_byte_sums(const AttentionCall& call, const Plan& plan, Carver& carver) {
  const std::size_t n_rows =
      static_cast<std::size_t>(plan.chunk_blocks) * plan.kv_per_task * plan.tile_rows;
  kept_weights = carver.take<float>(n_rows);
  kept_rescale = carver.take<float>(n_rows);
  kept_probabilities = carver.take<std::uint8_t>(n_rows * kBlockCells);
  sum_codes = carver.take<std::uint8_t>(
      plan.chunk_blocks * call.key_sums->groups().size() *
      unpacked_group_bytes(call.key_sums->centroids().spec().code_bits()));
}

}  // namespace cqkv
