// See byte_queries.h.
#include "attention/cpu/byte_queries.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cqkv {
namespace {

// What a rotated pair of 8-bit channels can be at most, times 32, roundings included, and what
// the sum of its products with a query must stay below.
constexpr float kLargestKey = 5750.0F;
constexpr float kLargestSum = 0x1p31F;
constexpr float kLargestQuery = 32766.0F;
constexpr float kKeyUnit = 32.0F;
// Keeps the scale of tiny queries finite.
constexpr float kLargestScale = 1e30F;

std::size_t task_rows(const Plan& plan) {
  return plan.byte_keys ? static_cast<std::size_t>(plan.kv_per_task) * plan.tile_rows : 0;
}

// Floats of a row of pairs, or of the angles of a block: two for each pair.
std::size_t row_floats(const Plan& plan) {
  return 2 * static_cast<std::size_t>(plan.padded_pairs);
}

// The lengths that the pairs of a query have, rotated or not.
struct PairLengths {
  float largest = 0.0F;
  float total = 0.0F;
};

// A query as pairs of channels [2, padded_pairs], times the scales of the keys' bytes.
PairLengths pair_channels(const CallContext& context, int kv_head, const float* query,
                          float* pairs) {
  const ByteTables& tables = *context.call.k.codec->tables();
  const kernels::ChannelPair* components = tables.component_pairs(kv_head);
  const bool placed = tables.takes_components();
  const float* scales = tables.scales(kv_head);
  const KeyPairs& key_pairs = tables.pairs();
  const RopeTable* rope = context.call.rope;
  const float magnitude = rope != nullptr ? std::abs(rope->magnitude()) : 1.0F;
  float* y_pairs = pairs + context.plan.padded_pairs;
  PairLengths lengths;
  for (int i = 0; i < static_cast<int>(key_pairs.pairs.size()); i++) {
    const kernels::ChannelPair pair = key_pairs.pairs[i];
    const int at = placed ? tables.places(kv_head)[i] : i;
    pairs[at] = query[pair.x] * scales[components[i].x];
    y_pairs[at] = pair.y != pair.x ? query[pair.y] * scales[components[i].y] : 0.0F;
    const float modulus = std::sqrt(pairs[at] * pairs[at] + y_pairs[at] * y_pairs[at]) *
                          (i < key_pairs.n_rotated() ? magnitude : 1.0F);
    lengths.largest = std::max(lengths.largest, modulus);
    lengths.total += modulus;
  }
  return lengths;
}

// A query as pairs [2, padded_pairs] in units of which one rotated pair fills 16 bits and the sum
// of all products 32; rotating keeps both true. Returns what undoes the scale.
float scale_row(const CallContext& context, int kv_head, const float* query, float* pairs) {
  const int n_floats = 2 * context.plan.padded_pairs;
  std::fill_n(pairs, n_floats, 0.0F);
  const PairLengths lengths = pair_channels(context, kv_head, query, pairs);
  if (!std::isfinite(lengths.total)) {
    std::fill_n(pairs, n_floats, 0.0F);
    return std::numeric_limits<float>::quiet_NaN();
  }
  const auto n_pairs = static_cast<int>(context.call.k.codec->tables()->pairs().pairs.size());
  const float room = kLargestSum / kLargestKey - static_cast<float>(n_pairs + 100);
  const float scale =
      lengths.total > 0.0F
          ? std::min({kLargestQuery / lengths.largest, room / lengths.total, kLargestScale})
          : 0.0F;
  for (int i = 0; i < n_floats; i++) {
    pairs[i] *= scale;
  }
  return scale > 0.0F ? 1.0F / (kKeyUnit * scale) : 0.0F;
}

}  // namespace

ByteQueries::ByteQueries(const CallContext& context, Carver& carver)
    : context_(context),
      pairs_(carver.take<float>(task_rows(context.plan) * row_floats(context.plan))),
      factors_(carver.take<float>(task_rows(context.plan))),
      rotated_(carver.take<std::uint32_t>(static_cast<std::size_t>(context.plan.chunk_blocks) *
                                          context.plan.tile_rows * context.plan.padded_pairs)),
      angles_(carver.take<float>(context.plan.chunk_blocks * row_floats(context.plan))),
      placed_angles_(carver.take<float>(row_floats(context.plan))) {
}

void ByteQueries::begin_task(const AttentionTask& task, const float* queries) {
  if (!context_.plan.byte_keys) {
    return;
  }
  const std::size_t n_floats = row_floats(context_.plan);
  for (int r = 0; r < task.n_kv * task.n_rows; r++) {
    const auto row = static_cast<std::size_t>(r);
    *factors_.from(row) =
        scale_row(context_, task.first_kv + r / task.n_rows,
                  queries + row * context_.call.head_dim_k, pairs_.from(row * n_floats));
  }
}

// By the position of the centre of the block.
void ByteQueries::load_angles(const ViewBlock& block, int index) {
  if (!context_.plan.byte_keys) {
    return;
  }
  const int padded_pairs = context_.plan.padded_pairs;
  float* cosines = angles_.from(index * row_floats(context_.plan));
  float* sines = cosines + padded_pairs;
  std::fill_n(cosines, padded_pairs, 1.0F);
  std::fill_n(sines, padded_pairs, 0.0F);
  if (context_.call.rope != nullptr) {
    context_.call.rope->row(block.base + RopeTable::kBlockCentre, cosines, sines);
  }
}

// Angles in the order in which a KV head's pairs are taken.
const float* ByteQueries::place_angles(int kv_head, const float* angles) {
  const ByteTables& tables = *context_.call.k.codec->tables();
  const int padded_pairs = context_.plan.padded_pairs;
  const std::uint16_t* places = tables.places(kv_head);
  const auto n_pairs = static_cast<int>(tables.pairs().pairs.size());
  float* cosines = placed_angles_.data();
  float* sines = cosines + padded_pairs;
  for (int i = 0; i < padded_pairs; i++) {
    const int at = i < n_pairs ? places[i] : i;
    cosines[at] = angles[i];
    sines[at] = angles[padded_pairs + i];
  }
  return cosines;
}

void ByteQueries::rotate(const HeadRows& head, int n_blocks) {
  const std::size_t n_floats = row_floats(context_.plan);
  const float* pairs = pairs_.from(static_cast<std::size_t>(head.index) * head.n_rows * n_floats);
  for (int i = 0; i < n_blocks; i++) {
    const float* angles = angles_.from(i * n_floats);
    if (context_.call.k.codec->tables()->takes_components()) {
      angles = place_angles(head.kv_head, angles);
    }
    context_.kernel.rotate_queries(
        pairs, head.n_rows, context_.plan.padded_pairs, angles, angles + stride(),
        rotated_.from(static_cast<std::size_t>(i) * head.n_rows * stride()));
  }
}

}  // namespace cqkv
