// Sums over decoded keys beside those over values (key_sums.h): what a step adds to them, in
// bytes and in floats, and the product with the matrices at the end. They stand behind the
// channels of the values in every row of a softmax state. Part of AttentionOperator.
#include <algorithm>
#include <cstring>

#include "attention/cpu/attention_operator.h"
#include "codec/key_sums.h"

namespace cqkv {

// ---------------------------------------------------------------- bytes

// Keeps the probabilities that the step of KV head number `kv` of the task came to, beside
// those of its other KV heads.
void AttentionOperator::keep_probabilities(const Part& part, int kv, const Chunk& chunk,
                                           const Scratch& scratch) const {
  const auto n_rows = static_cast<std::size_t>(part.n_rows);
  for (int i = 0; i < chunk.n; i++) {
    const std::size_t from = i * n_rows;
    const std::size_t to = (static_cast<std::size_t>(i) * part.n_kv + kv) * n_rows;
    std::copy_n(scratch.probabilities + from * kBlockCells, n_rows * kBlockCells,
                scratch.kept_probabilities + to * kBlockCells);
    std::copy_n(scratch.weights + from, n_rows, scratch.kept_weights + to);
    std::copy_n(scratch.rescale + from, n_rows, scratch.kept_rescale + to);
  }
}

// The codes of the chosen groups of a block, one group after the other, as the kernels read them:
// where they lie, or in `to`.
const std::uint8_t* AttentionOperator::key_codes(const ViewBlock& block, const Scratch& scratch,
                                                 std::uint8_t* to) const {
  const CodeLayout& layout = call_.k.codec->layout();
  const int n_groups = layout.n_groups(0);
  const KeySums& key_sums = *call_.key_sums;
  if (layout.code_bits() == 8 && block.block >= 0 && key_sums.is_run()) {
    return call_.k.data + layout.group_offset(block.block, 0, key_sums.groups().front());
  }
  const std::size_t group_bytes = unpacked_group_bytes(layout.code_bits());
  std::uint8_t* next = to;
  int head = key_sums.groups().front() / n_groups;
  const std::uint8_t* codes = block_codes(call_.k, head, block, scratch.unpacked);
  for (const int group : key_sums.groups()) {
    if (group / n_groups != head) {
      head = group / n_groups;
      codes = block_codes(call_.k, head, block, scratch.unpacked);
    }
    std::memcpy(next, codes + group % n_groups * group_bytes, group_bytes);
    next += group_bytes;
  }
  return to;
}

// Keys are decoded once for the rows of all KV heads of the task.
void AttentionOperator::byte_key_sums(const Part& part, const Chunk& chunk,
                                      const Scratch& scratch) const {
  const KeySums& key_sums = *call_.key_sums;
  const CodecSpec spec = key_sums.centroids().spec().spec(0);
  kernels::AccumulateCodes sums;
  sums.blocks.table = key_sums.tables()->table(0);
  sums.blocks.group_dim = spec.group_dim;
  sums.blocks.code_bits = spec.code_bits;
  sums.blocks.n_channels = key_sums.n_channels();
  sums.blocks.n_blocks = chunk.n;
  const std::size_t block_bytes = key_sums.groups().size() * unpacked_group_bytes(spec.code_bits);
  for (int i = 0; i < chunk.n; i++) {
    sums.blocks.codes[i] =
        key_codes(views_.block(chunk.blocks[i]), scratch, scratch.sum_codes + i * block_bytes);
  }
  sums.p = scratch.kept_probabilities;
  sums.weights = scratch.kept_weights;
  sums.rescale = scratch.kept_rescale;
  sums.scales = key_sums.tables()->scales(0);
  sums.n_rows = part.n_kv * part.n_rows;
  sums.out = scratch.part.out + plan_.channels_v;
  sums.out_stride = static_cast<std::size_t>(plan_.channels);
  key_kernel_.accumulate_codes(sums);
}

// ---------------------------------------------------------------- floats

// After the softmax of a step in floats, whose probabilities are in scratch.scores.
void AttentionOperator::float_key_sums(const Part& part, int kv, const ViewBlock& block,
                                       const Scratch& scratch) const {
  const TensorCodebook& centroids = call_.key_sums->centroids();
  const int n_groups = call_.k.codec->layout().n_groups(0);
  const auto stride = static_cast<std::size_t>(plan_.sum_stride);
  const int group_dim = centroids.spec().group_dim(0);
  float* rows = scratch.sum_rows;
  int index = 0;
  for (const int group : call_.key_sums->groups()) {
    load_codes(call_.k, group / n_groups, group % n_groups, block, scratch.codes);
    kernel_.decode_tokens(centroids.group(0, index++), group_dim, scratch.codes, rows, stride);
    rows += group_dim;
  }
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  kernel_.accumulate_rows(scratch.scores, part.n_rows, scratch.sum_rows, stride, plan_.sum_channels,
                          scratch.rescale, state.out + plan_.channels_v,
                          static_cast<std::size_t>(plan_.channels));
}

// A step over cells that are seen exactly: it adds no keys.
void AttentionOperator::rescale_key_sums(const Part& part, int kv, const Scratch& scratch) const {
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  for (int r = 0; r < part.n_rows; r++) {
    float* sums = state.out + static_cast<std::size_t>(r) * plan_.channels + plan_.channels_v;
    for (int i = 0; i < plan_.sum_channels; i++) {
      sums[i] *= scratch.rescale[r];
    }
  }
}

// ---------------------------------------------------------------- the end

// Adds the products of the matrices with the sums over keys to the sums over values: rows of
// sums take the place of probabilities, rows of the transposed matrix that of values.
void AttentionOperator::add_key_sums(const Part& part, const SoftmaxState& state,
                                     const Scratch& scratch) const {
  const KeySums& key_sums = *call_.key_sums;
  std::fill_n(scratch.rescale, part.n_rows, 1.0F);
  for (int kv = 0; kv < part.n_kv; kv++) {
    const SoftmaxState of_head = state.at(kv, part.n_rows, plan_.channels);
    const float* matrix = key_sums.matrix(part.first_kv + kv);
    for (int first = 0; first < key_sums.n_channels(); first += kBlockCells) {
      const int n = std::min(kBlockCells, key_sums.n_channels() - first);
      for (int r = 0; r < part.n_rows; r++) {
        const float* sums =
            of_head.out + static_cast<std::size_t>(r) * plan_.channels + plan_.channels_v + first;
        float* row = scratch.scores + static_cast<std::size_t>(r) * kBlockCells;
        std::fill(std::copy_n(sums, n, row), row + kBlockCells, 0.0F);
      }
      kernel_.accumulate_rows(scratch.scores, part.n_rows,
                              matrix + first * key_sums.matrix_stride(), key_sums.matrix_stride(),
                              plan_.channels_v, scratch.rescale, of_head.out,
                              static_cast<std::size_t>(plan_.channels));
    }
  }
}

}  // namespace cqkv
