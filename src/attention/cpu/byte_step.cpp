// See byte_step.h.
#include "attention/cpu/byte_step.h"

#include <algorithm>

#include "attention/cpu/block_codes.h"

namespace cqkv {
namespace {

std::size_t chunk_rows(const Plan& plan) {
  return static_cast<std::size_t>(plan.chunk_blocks) * plan.tile_rows;
}

// Of one block, keys or values, whichever have more.
std::size_t unpacked_bytes(const CallContext& context) {
  const std::size_t keys = context.plan.byte_keys ? coded_bytes(context.call.k) : 0;
  const std::size_t values = context.plan.byte_values ? coded_bytes(context.call.v) : 0;
  return std::max(keys, values);
}

// Of a head without codes: what exact rows have added so far.
void rescale_values(const Plan& plan, const HeadRows& head, int n_blocks, const float* rescale) {
  for (int i = 0; i < n_blocks; i++) {
    for (int r = 0; r < head.n_rows; r++) {
      const float factor = rescale[i * head.n_rows + r];
      float* out = head.state.out + static_cast<std::size_t>(r) * plan.channels;
      for (int d = 0; d < plan.channels_v && factor != 1.0F; d++) {
        out[d] *= factor;
      }
    }
  }
}

}  // namespace

void KeyRotation::pack() {
  const AttentionCall& call = context_.call;
  if (context_.plan.byte_keys && call.rope != nullptr &&
      !call.k.codec->tables()->takes_components()) {
    const auto sines = static_cast<std::size_t>(call.rope->params().n_dims / 2) * kBlockCells;
    const float* centred = call.rope->centred();
    context_.key_kernel.pack_angles(centred, centred + sines,
                                    call.k.codec->tables()->pairs().n_turning, kernels::kAngleUnit,
                                    angles_.data());
  }
}

ByteStep::ByteStep(const CallContext& context, const KeyRotation& rotation, Carver& carver)
    : context_(context),
      rotation_(rotation),
      queries_(context, carver),
      chunk_factors_(carver.take<float>(context.plan.byte_keys ? chunk_rows(context.plan) : 0)),
      weights_(carver.take<float>(context.plan.byte_values ? chunk_rows(context.plan) : 0)),
      probabilities_(carver.take<std::uint8_t>(weights_.size() * kBlockCells)),
      unpacked_(carver.take<std::uint8_t>(context.plan.chunk_blocks * unpacked_bytes(context))),
      kernel_scratch_(carver.take<std::uint8_t>(
          context.plan.byte_keys
              ? kernels::score_scratch_bytes(context.call.head_dim_k, context.plan.padded_pairs)
              : 0)) {
}

// ---------------------------------------------------------------- keys

kernels::ScoreCodes ByteStep::score_call(const HeadRows& head, const BlockChunk& chunk,
                                         StepScores& step) {
  const CacheSide& side = context_.call.k;
  const ByteTables& tables = *side.codec->tables();
  kernels::ScoreCodes score;
  score.blocks = coded_blocks(context_, side, head.kv_head, chunk, unpacked_.data());
  score.n_pairs = static_cast<int>(tables.pairs().pairs.size());
  if (tables.takes_components()) {
    score.pairs = tables.component_run();
    score.n_rotated = context_.call.rope != nullptr ? score.n_pairs : 0;
    score.rotation = tables.angles(head.kv_head);
  } else {
    score.pairs = tables.component_pairs(head.kv_head);
    score.n_rotated = tables.pairs().n_turning;
    score.rotation = rotation_.angles();
  }
  for (int i = 0; i < chunk.n; i++) {
    score.queries[i] = queries_.rotated(i, head.n_rows);
  }
  score.query_stride = queries_.stride();
  score.n_rows = head.n_rows;
  score.factors = queries_.factors(head);
  score.scratch = kernel_scratch_.data();
  score.scores = step.scores.data();
  return score;
}

// Keys without codes are the same in every block: the rows of all blocks become rows of the one
// block, whose keys are then looked up and rotated once.
void ByteStep::merge_blocks(int n_blocks, kernels::ScoreCodes& score) {
  for (int i = 0; i < n_blocks; i++) {
    std::copy_n(score.factors, score.n_rows, chunk_factors_.from(i * score.n_rows));
  }
  score.factors = chunk_factors_.data();
  score.n_rows *= n_blocks;
}

void ByteStep::score(const HeadRows& head, const BlockChunk& chunk, StepScores& step) {
  kernels::ScoreCodes score = score_call(head, chunk, step);
  queries_.rotate(head, chunk.n);
  if (score.blocks.n_blocks < chunk.n) {
    merge_blocks(chunk.n, score);
  }
  context_.key_kernel.score_codes(score);
}

// ---------------------------------------------------------------- values

void ByteStep::softmax(const HeadRows& head, const BlockChunk& chunk, const BlockMasks& masks,
                       StepScores& step) {
  const float scale = step.cap(context_, chunk.n * head.n_rows);
  for (int i = 0; i < chunk.n; i++) {
    const std::size_t row = static_cast<std::size_t>(i) * head.n_rows;
    kernels::SoftmaxBytes softmax;
    softmax.scores = step.scores.from(row * kBlockCells);
    softmax.n_rows = head.n_rows;
    softmax.scale = scale;
    softmax.mask = masks.coded(i);
    softmax.rows_per_mask = context_.plan.heads_per_kv;
    softmax.maxima = head.state.maxima;
    softmax.sums = head.state.sums;
    softmax.rescale = step.rescale.from(row);
    softmax.weights = weights_.from(row);
    softmax.p = probabilities_.from(row * kBlockCells);
    context_.kernel.softmax_bytes(softmax);
  }
}

void ByteStep::accumulate(const HeadRows& head, const BlockChunk& chunk, const StepScores& step) {
  const CacheSide& side = context_.call.v;
  kernels::AccumulateCodes values;
  values.blocks = coded_blocks(context_, side, head.kv_head, chunk, unpacked_.data());
  values.p = probabilities_.data();
  values.weights = weights_.data();
  values.rescale = step.rescale.data();
  values.scales = side.codec->tables()->scales(head.kv_head);
  values.n_rows = head.n_rows;
  values.out = head.state.out;
  values.out_stride = static_cast<std::size_t>(context_.plan.channels);
  context_.value_kernel.accumulate_codes(values);
}

void ByteStep::add_values(const HeadRows& head, const BlockChunk& chunk, const BlockMasks& masks,
                          StepScores& step) {
  softmax(head, chunk, masks, step);
  if (context_.has_value_codes(head.kv_head)) {
    accumulate(head, chunk, step);
  } else {
    rescale_values(context_.plan, head, chunk.n, step.rescale.data());
  }
}

}  // namespace cqkv
