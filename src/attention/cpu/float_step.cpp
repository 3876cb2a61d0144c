// See float_step.h.
#include "attention/cpu/float_step.h"

#include <algorithm>

#include "attention/cpu/block_codes.h"
#include "codec/exact_row.h"

namespace cqkv {
namespace {

// Some channels of the cells of a block, [64, head_dim].
struct BlockRows {
  int head_dim;
  float* rows;
  std::size_t stride;
};

// The plain rows of one head.
void load_plain(const CallContext& context, const CacheSide& side, int kv_head,
                const ViewBlock& block, BlockRows to) {
  const std::uint8_t* from = side.data + kv_head * side.head_bytes;
  for (int t = 0; t < kBlockCells; t++) {
    float* row = to.rows + t * to.stride;
    const std::int32_t cell = context.views.cell(block, t);
    if (cell >= 0) {
      const std::uint8_t* half = from + static_cast<std::size_t>(cell) * side.row_bytes;
      context.kernel.half_to_float_n(reinterpret_cast<const std::uint16_t*>(half),
                                     static_cast<std::size_t>(to.head_dim), row);
    } else {
      std::fill_n(row, to.head_dim, 0.0F);
    }
  }
}

// Decodes the rows of one head, token by token.
void decode_rows(const CallContext& context, const CacheSide& side, int kv_head,
                 const ViewBlock& block, BlockRows to) {
  const int group_dim = side.codec->spec().group_dim(kv_head);
  std::uint16_t codes[kBlockCells];
  for (int g = 0; g < to.head_dim / group_dim; g++) {
    load_codes(context, side, kv_head, g, block, codes);
    context.kernel.decode_tokens(side.codec->codebook().group(kv_head, g), group_dim, codes,
                                 to.rows + static_cast<std::size_t>(g) * group_dim, to.stride);
  }
}

// Adds the residuals of one head of the cells that have exact rows.
void add_exact(const CallContext& context, const ExactRows::Side& side, int kv_head,
               const ViewBlock& block, BlockRows to) {
  const ExactRows& exact = *context.call.exact;
  const ExactRowLayout layout{context.call.n_kv_heads * to.head_dim};
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell = context.views.cell(block, t);
    const std::int32_t row = cell >= 0 ? exact.rows[cell] : -1;
    if (row >= 0) {
      const bool pool = row < exact.n_pool;
      const auto index = static_cast<std::size_t>(pool ? row : row - exact.n_pool);
      add_exact_row(layout, (pool ? side.pool : side.batch) + index * layout.row_bytes(),
                    kv_head * to.head_dim, to.head_dim, to.rows + t * to.stride);
    }
  }
}

std::size_t block_floats(int n) {
  return static_cast<std::size_t>(n) * kBlockCells;
}

}  // namespace

FloatStep::FloatStep(const CallContext& context, Carver& carver)
    : context_(context),
      keys_(carver.take<float>(block_floats(context.call.head_dim_k))),
      values_(carver.take<float>(block_floats(context.plan.value_stride))),
      rows_(carver.take<float>(block_floats(context.call.head_dim_k))),
      cosines_(carver.take<float>(block_floats(context.call.head_dim_k / 2))),
      sines_(carver.take<float>(block_floats(context.call.head_dim_k / 2))) {
}

void FloatStep::begin_task() {
  // Padded channels of the values take part in the sums: they must be finite.
  std::fill_n(values_.data(), values_.size(), 0.0F);
}

void FloatStep::load_angles(const ViewBlock& block) {
  std::int32_t positions[kBlockCells];
  for (int t = 0; t < kBlockCells; t++) {
    positions[t] = static_cast<std::int32_t>(block.base + t);
  }
  context_.call.rope->block(positions, cosines_.data(), sines_.data());
}

// ---------------------------------------------------------------- keys

void FloatStep::load_keys(int kv_head, const ViewBlock& block) {
  const CacheSide& side = context_.call.k;
  const int head_dim = context_.call.head_dim_k;
  if (side.codec == nullptr) {
    const auto stride = static_cast<std::size_t>(head_dim);
    load_plain(context_, side, kv_head, block, {head_dim, rows_.data(), stride});
    context_.kernel.transpose_rows(rows_.data(), stride, head_dim, keys_.data());
    return;
  }
  const TensorCodebook& codebook = side.codec->codebook();
  const int group_dim = codebook.spec().group_dim(kv_head);
  float* tile = keys_.data();
  std::uint16_t codes[kBlockCells];
  for (int g = 0; g < head_dim / group_dim; g++) {
    load_codes(context_, side, kv_head, g, block, codes);
    context_.kernel.decode_channels(codebook.group(kv_head, g), group_dim, codes, tile);
    tile += block_floats(group_dim);
  }
  order_keys(kv_head);
  rotate_keys();
}

// The keys of a block, with their residuals where cells have exact rows.
void FloatStep::load_exact_keys(int kv_head, const ViewBlock& block) {
  const AttentionCall& call = context_.call;
  if (call.k.codec == nullptr) {
    load_keys(kv_head, block);  // exact as they are
    return;
  }
  const auto stride = static_cast<std::size_t>(call.head_dim_k);
  const BlockRows rows{call.head_dim_k, rows_.data(), stride};
  decode_rows(context_, call.k, kv_head, block, rows);
  add_exact(context_, call.exact->k, kv_head, block, rows);
  context_.kernel.transpose_rows(rows_.data(), stride, call.head_dim_k, keys_.data());
  order_keys(kv_head);
  rotate_keys();
}

// Turns components [component, 64] into channels.
void FloatStep::order_keys(int kv_head) {
  const TensorBasis& basis = context_.call.k.codec->basis();
  if (!basis.has_order()) {
    return;
  }
  std::copy_n(keys_.data(), keys_.size(), rows_.data());
  for (int i = 0; i < context_.call.head_dim_k; i++) {
    std::copy_n(rows_.from(block_floats(i)), kBlockCells,
                keys_.from(block_floats(basis.order(kv_head)[i])));
  }
}

void FloatStep::rotate_keys() {
  if (context_.call.rope == nullptr) {
    return;
  }
  const RopeParams& rope = context_.call.rope->params();
  const bool neox = rope.mode == RopeMode::kNeox;
  context_.kernel.rotate_pairs(keys_.data(), rope.n_dims / 2, neox ? 1 : 2,
                               neox ? rope.n_dims / 2 : 1, cosines_.data(), sines_.data());
}

void FloatStep::score(const HeadRows& head, const ViewBlock& block, bool exact, StepScores& step) {
  if (exact) {
    load_exact_keys(head.kv_head, block);
  } else {
    load_keys(head.kv_head, block);
  }
  const int head_dim = context_.call.head_dim_k;
  context_.kernel.score_rows(head.queries, static_cast<std::size_t>(head_dim), head.n_rows,
                             head_dim, keys_.data(), step.scores.data());
}

// ---------------------------------------------------------------- values

void FloatStep::load_values(int kv_head, const ViewBlock& block, bool exact) {
  const AttentionCall& call = context_.call;
  const auto stride = static_cast<std::size_t>(context_.plan.value_stride);
  const BlockRows rows{call.head_dim_v, values_.data(), stride};
  if (call.v.codec == nullptr) {
    load_plain(context_, call.v, kv_head, block, rows);
    return;
  }
  if (context_.has_value_codes(kv_head)) {
    decode_rows(context_, call.v, kv_head, block, rows);
  } else {  // its mean is added at the end
    std::fill_n(values_.data(), values_.size(), 0.0F);
  }
  if (exact) {
    add_exact(context_, call.exact->v, kv_head, block, rows);
  }
}

void FloatStep::add_values(const HeadRows& head, const ViewBlock& block, bool exact,
                           const float* mask, StepScores& step) {
  const Plan& plan = context_.plan;
  const float scale = step.cap(context_, head.n_rows);
  context_.kernel.softmax_rows(step.scores.data(), head.n_rows, scale, mask, plan.heads_per_kv,
                               head.state.maxima, head.state.sums, step.rescale.data());
  load_values(head.kv_head, block, exact);
  context_.kernel.accumulate_rows(step.scores.data(), head.n_rows, values_.data(),
                                  static_cast<std::size_t>(plan.value_stride), plan.channels_v,
                                  step.rescale.data(), head.state.out,
                                  static_cast<std::size_t>(plan.channels));
}

}  // namespace cqkv
