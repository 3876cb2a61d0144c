// A step over one block in floats: plain rows, codes with exact rows beside them, and codes
// for which there are no byte tables. Part of AttentionOperator.
#include <algorithm>

#include "attention/cpu/attention_operator.h"
#include "codec/exact_row.h"

namespace cqkv {

void AttentionOperator::load_plain(const CacheSide& side, int kv_head, const ViewBlock& block,
                                   int head_dim, float* rows, std::size_t stride) const {
  const std::uint8_t* from = side.data + kv_head * side.head_bytes;
  for (int t = 0; t < kBlockCells; t++) {
    float* row = rows + t * stride;
    const std::int32_t cell = views_.cell(block, t);
    if (cell >= 0) {
      const std::uint8_t* half = from + static_cast<std::size_t>(cell) * side.row_bytes;
      kernel_.half_to_float_n(reinterpret_cast<const std::uint16_t*>(half),
                              static_cast<std::size_t>(head_dim), row);
    } else {
      std::fill_n(row, head_dim, 0.0F);
    }
  }
}

// The codes [64] of one group of a block.
void AttentionOperator::load_codes(const CacheSide& side, int kv_head, int group,
                                   const ViewBlock& block, std::uint16_t* codes) const {
  const CodeLayout& layout = side.codec->layout();
  if (!layout.spec.coded(kv_head)) {
    std::fill_n(codes, kBlockCells, std::uint16_t{0});
  } else if (block.block >= 0) {
    unpack_group(layout.code_bits(), side.data + layout.group_offset(block.block, kv_head, group),
                 codes);
  } else {
    gather_group(layout, side.data, kv_head, group, views_.lanes(block), codes);
  }
}

void AttentionOperator::load_keys(int kv_head, const ViewBlock& block,
                                  const Scratch& scratch) const {
  if (call_.k.codec == nullptr) {
    const auto stride = static_cast<std::size_t>(call_.head_dim_k);
    load_plain(call_.k, kv_head, block, call_.head_dim_k, scratch.rows, stride);
    kernel_.transpose_rows(scratch.rows, stride, call_.head_dim_k, scratch.keys);
    return;
  }
  const TensorCodebook& codebook = call_.k.codec->codebook();
  const int group_dim = codebook.spec().group_dim(kv_head);
  float* tile = scratch.keys;
  for (int g = 0; g < call_.head_dim_k / group_dim; g++) {
    load_codes(call_.k, kv_head, g, block, scratch.codes);
    kernel_.decode_channels(codebook.group(kv_head, g), group_dim, scratch.codes, tile);
    tile += static_cast<std::size_t>(group_dim) * kBlockCells;
  }
  rotate_keys(kv_head, scratch);
}

// Of components [component, 64] in scratch.keys.
void AttentionOperator::rotate_keys(int kv_head, const Scratch& scratch) const {
  const TensorBasis& basis = call_.k.codec->basis();
  if (basis.has_order()) {
    std::copy_n(scratch.keys, static_cast<std::size_t>(call_.head_dim_k) * kBlockCells,
                scratch.rows);
    for (int i = 0; i < call_.head_dim_k; i++) {
      std::copy_n(scratch.rows + static_cast<std::size_t>(i) * kBlockCells, kBlockCells,
                  scratch.keys + static_cast<std::size_t>(basis.order(kv_head)[i]) * kBlockCells);
    }
  }
  if (call_.rope != nullptr) {
    const RopeParams& rope = call_.rope->params();
    const bool neox = rope.mode == RopeMode::kNeox;
    kernel_.rotate_pairs(scratch.keys, rope.n_dims / 2, neox ? 1 : 2, neox ? rope.n_dims / 2 : 1,
                         scratch.cosines, scratch.sines);
  }
}

// The keys of a block, with their residuals where cells have exact rows.
void AttentionOperator::load_exact_keys(int kv_head, const ViewBlock& block,
                                        const Scratch& scratch) const {
  if (call_.k.codec == nullptr) {
    load_keys(kv_head, block, scratch);  // exact as they are
    return;
  }
  const auto stride = static_cast<std::size_t>(call_.head_dim_k);
  decode_rows(call_.k, kv_head, block, call_.head_dim_k, scratch, scratch.rows, stride);
  add_exact(call_.exact->k, kv_head, block, call_.head_dim_k, scratch.rows, stride);
  kernel_.transpose_rows(scratch.rows, stride, call_.head_dim_k, scratch.keys);
  rotate_keys(kv_head, scratch);
}

// Adds the residuals of one head of the cells of a block that have exact rows.
void AttentionOperator::add_exact(const ExactRows::Side& side, int kv_head, const ViewBlock& block,
                                  int head_dim, float* rows, std::size_t stride) const {
  const ExactRowLayout layout{call_.n_kv_heads * head_dim};
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell = views_.cell(block, t);
    const std::int32_t row = cell >= 0 ? call_.exact->rows[cell] : -1;
    if (row >= 0) {
      const bool pool = row < call_.exact->n_pool;
      const auto index = static_cast<std::size_t>(pool ? row : row - call_.exact->n_pool);
      add_exact_row(layout, (pool ? side.pool : side.batch) + index * layout.row_bytes(),
                    kv_head * head_dim, head_dim, rows + t * stride);
    }
  }
}

// Decodes the rows of one head of a block, token by token.
void AttentionOperator::decode_rows(const CacheSide& side, int kv_head, const ViewBlock& block,
                                    int head_dim, const Scratch& scratch, float* rows,
                                    std::size_t stride) const {
  const int group_dim = side.codec->spec().group_dim(kv_head);
  for (int g = 0; g < head_dim / group_dim; g++) {
    load_codes(side, kv_head, g, block, scratch.codes);
    kernel_.decode_tokens(side.codec->codebook().group(kv_head, g), group_dim, scratch.codes,
                          rows + static_cast<std::size_t>(g) * group_dim, stride);
  }
}

void AttentionOperator::load_values(int kv_head, const ViewBlock& block, bool exact,
                                    const Scratch& scratch) const {
  const auto stride = static_cast<std::size_t>(plan_.value_stride);
  if (call_.v.codec == nullptr) {
    load_plain(call_.v, kv_head, block, call_.head_dim_v, scratch.values, stride);
    return;
  }
  if (has_value_codes(kv_head)) {
    decode_rows(call_.v, kv_head, block, call_.head_dim_v, scratch, scratch.values, stride);
  } else {  // its mean is added at the end
    std::fill_n(scratch.values, stride * kBlockCells, 0.0F);
  }
  if (exact) {
    add_exact(call_.exact->v, kv_head, block, call_.head_dim_v, scratch.values, stride);
  }
}

// Scores of KV head number `kv` of the task with one block, decoded to floats.
void AttentionOperator::float_scores(const Part& part, int kv, const ViewBlock& block, bool exact,
                                     const Scratch& scratch) const {
  const auto query_stride = static_cast<std::size_t>(call_.head_dim_k);
  if (exact) {
    load_exact_keys(part.first_kv + kv, block, scratch);
  } else {
    load_keys(part.first_kv + kv, block, scratch);
  }
  kernel_.score_rows(scratch.queries + kv * part.n_rows * query_stride, query_stride, part.n_rows,
                     call_.head_dim_k, scratch.keys, scratch.scores);
}

// Softmax and values of one block, decoded to floats.
void AttentionOperator::float_values(const Part& part, int kv, const ViewBlock& block, bool exact,
                                     const float* mask, const Scratch& scratch) const {
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  const float scale = cap_scores(scratch.scores, part.n_rows);
  kernel_.softmax_rows(scratch.scores, part.n_rows, scale, mask, plan_.heads_per_kv, state.maxima,
                       state.sums, scratch.rescale);
  load_values(part.first_kv + kv, block, exact, scratch);
  kernel_.accumulate_rows(scratch.scores, part.n_rows, scratch.values,
                          static_cast<std::size_t>(plan_.value_stride), plan_.channels_v,
                          scratch.rescale, state.out, static_cast<std::size_t>(plan_.channels));
  if (plan_.sum_channels > 0) {
    if (exact) {
      rescale_key_sums(part, kv, scratch);
    } else {
      float_key_sums(part, kv, block, scratch);
    }
  }
}

// One step of the softmax states with the cells of a block that are seen exactly.
void AttentionOperator::exact_step(const Part& part, int kv, const ViewBlock& block,
                                   const Scratch& scratch) const {
  float_scores(part, kv, block, true, scratch);
  float_values(part, kv, block, true, scratch.exact_mask, scratch);
}

}  // namespace cqkv
