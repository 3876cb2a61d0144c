// See key_sum_step.h.
#include "attention/cpu/key_sum_step.h"

#include <algorithm>
#include <cstring>

#include "attention/cpu/block_codes.h"

namespace cqkv {
namespace {

// Rows of all KV heads of a task in a chunk, if sums are in bytes.
std::size_t kept_rows(const Plan& plan) {
  return plan.byte_sums()
             ? static_cast<std::size_t>(plan.chunk_blocks) * plan.kv_per_task * plan.tile_rows
             : 0;
}

// Codes of n groups of a block, if sums are in bytes.
std::size_t code_bytes(const CallContext& context, std::size_t n_groups) {
  return context.plan.byte_sums()
             ? n_groups * unpacked_group_bytes(context.call.k.codec->layout().code_bits())
             : 0;
}

// Groups that are summed.
std::size_t n_chosen(const CallContext& context) {
  return context.call.key_sums != nullptr ? context.call.key_sums->groups().size() : 0;
}

// Groups of a KV head of keys, of which all have as many.
std::size_t n_groups_of_head(const CallContext& context) {
  return context.call.key_sums != nullptr
             ? static_cast<std::size_t>(context.call.k.codec->layout().n_groups(0))
             : 0;
}

}  // namespace

KeySumStep::KeySumStep(const CallContext& context, Carver& carver)
    : context_(context),
      rows_(carver.take<float>(static_cast<std::size_t>(context.plan.sum_stride) * kBlockCells)),
      weights_(carver.take<float>(kept_rows(context.plan))),
      rescale_(carver.take<float>(kept_rows(context.plan))),
      probabilities_(carver.take<std::uint8_t>(kept_rows(context.plan) * kBlockCells)),
      codes_(carver.take<std::uint8_t>(context.plan.chunk_blocks *
                                       code_bytes(context, n_chosen(context)))),
      unpacked_(carver.take<std::uint8_t>(code_bytes(context, n_groups_of_head(context)))) {
}

void KeySumStep::begin_task() {
  // Padded channels take part in the sums: they must be finite.
  std::fill_n(rows_.data(), rows_.size(), 0.0F);
}

// ---------------------------------------------------------------- bytes

void KeySumStep::keep(const AttentionTask& task, const HeadRows& head, const BlockChunk& chunk,
                      const ByteStep& bytes, const StepScores& step) {
  const auto n_rows = static_cast<std::size_t>(head.n_rows);
  for (int i = 0; i < chunk.n; i++) {
    const std::size_t from = i * n_rows;
    const std::size_t to = (static_cast<std::size_t>(i) * task.n_kv + head.index) * n_rows;
    std::copy_n(bytes.probabilities() + from * kBlockCells, n_rows * kBlockCells,
                probabilities_.from(to * kBlockCells));
    std::copy_n(bytes.weights() + from, n_rows, weights_.from(to));
    std::copy_n(step.rescale.from(from), n_rows, rescale_.from(to));
  }
}

// The codes of the chosen groups of a block, one group after the other, as the kernels read them:
// where they lie, or in `to`.
const std::uint8_t* KeySumStep::chosen_codes(const ViewBlock& block, std::uint8_t* to) {
  const CacheSide& side = context_.call.k;
  const CodeLayout& layout = side.codec->layout();
  const int n_groups = layout.n_groups(0);
  const KeySums& key_sums = *context_.call.key_sums;
  if (layout.code_bits() == 8 && block.block >= 0 && key_sums.is_run()) {
    return side.data + layout.group_offset(block.block, 0, key_sums.groups().front());
  }
  const std::size_t group_bytes = unpacked_group_bytes(layout.code_bits());
  std::uint8_t* next = to;
  int head = key_sums.groups().front() / n_groups;
  const std::uint8_t* codes = block_codes(context_, side, head, block, unpacked_.data());
  for (const int group : key_sums.groups()) {
    if (group / n_groups != head) {
      head = group / n_groups;
      codes = block_codes(context_, side, head, block, unpacked_.data());
    }
    std::memcpy(next, codes + group % n_groups * group_bytes, group_bytes);
    next += group_bytes;
  }
  return to;
}

void KeySumStep::add_kept(const AttentionTask& task, const BlockChunk& chunk, SoftmaxState state) {
  const KeySums& key_sums = *context_.call.key_sums;
  const CodecSpec spec = key_sums.centroids().spec().spec(0);
  kernels::AccumulateCodes sums;
  sums.blocks.table = key_sums.tables()->table(0);
  sums.blocks.group_dim = spec.group_dim;
  sums.blocks.code_bits = spec.code_bits;
  sums.blocks.n_channels = key_sums.n_channels();
  sums.blocks.n_blocks = chunk.n;
  const std::size_t block_bytes = code_bytes(context_, n_chosen(context_));
  for (int i = 0; i < chunk.n; i++) {
    sums.blocks.codes[i] =
        chosen_codes(context_.views.block(chunk.blocks[i]), codes_.from(i * block_bytes));
  }
  sums.p = probabilities_.data();
  sums.weights = weights_.data();
  sums.rescale = rescale_.data();
  sums.scales = key_sums.tables()->scales(0);
  sums.n_rows = task.n_kv * task.n_rows;
  sums.out = state.out + context_.plan.channels_v;
  sums.out_stride = static_cast<std::size_t>(context_.plan.channels);
  context_.key_kernel.accumulate_codes(sums);
}

// ---------------------------------------------------------------- floats

void KeySumStep::add(const HeadRows& head, const ViewBlock& block, const StepScores& step) {
  const AttentionCall& call = context_.call;
  const Plan& plan = context_.plan;
  const TensorCodebook& centroids = call.key_sums->centroids();
  const int n_groups = call.k.codec->layout().n_groups(0);
  const auto stride = static_cast<std::size_t>(plan.sum_stride);
  const int group_dim = centroids.spec().group_dim(0);
  std::uint16_t codes[kBlockCells];
  float* rows = rows_.data();
  int index = 0;
  for (const int group : call.key_sums->groups()) {
    load_codes(context_, call.k, group / n_groups, group % n_groups, block, codes);
    context_.kernel.decode_tokens(centroids.group(0, index++), group_dim, codes, rows, stride);
    rows += group_dim;
  }
  context_.kernel.accumulate_rows(
      step.scores.data(), head.n_rows, rows_.data(), stride, plan.sum_channels, step.rescale.data(),
      head.state.out + plan.channels_v, static_cast<std::size_t>(plan.channels));
}

void rescale_key_sums(const Plan& plan, const HeadRows& head, const StepScores& step) {
  for (int r = 0; r < head.n_rows; r++) {
    float* sums = head.state.out + static_cast<std::size_t>(r) * plan.channels + plan.channels_v;
    for (int i = 0; i < plan.sum_channels; i++) {
      sums[i] *= step.rescale.data()[r];
    }
  }
}

}  // namespace cqkv
