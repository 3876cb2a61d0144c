// A step over codes with byte tables, by the integer kernels: scores against 8-bit centroids
// rotated in 16 bits, with queries in 16 bits; probabilities and values in 8. Part of
// AttentionOperator; the numerics and their bounds are in docs/kernels.md.
//
// s = <q, R(p0 + t) k> with p0 the first position of a block is taken as
// <R(-(p0 + 32)) q, R(t - 32) k>: the rotation of the keys is then the same for all blocks,
// and what depends on p0 is one rotation of the query a block. Pairs that turn so little within a
// block that bytes could hardly tell are not rotated again.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/cpu/attention_operator.h"

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

// Groups of more channels than a table's entry have the codes of each part one after the other,
// [n_groups * n_parts, bytes]. `codes` may be `to`.
const std::uint8_t* repeat_codes(const std::uint8_t* codes, int n_groups, int n_parts,
                                 std::size_t bytes, std::uint8_t* to) {
  for (int i = n_groups * n_parts; i-- > 0;) {
    std::memmove(to + i * bytes, codes + i / n_parts * bytes, bytes);
  }
  return to;
}

}  // namespace

void AttentionOperator::pack_centred() const {
  if (plan_.byte_keys && call_.rope != nullptr && !call_.k.codec->tables()->takes_components()) {
    const auto sines = static_cast<std::size_t>(call_.rope->params().n_dims / 2) * kBlockCells;
    const float* centred = call_.rope->centred();
    key_kernel_.pack_angles(centred, centred + sines, call_.k.codec->tables()->pairs().n_turning,
                            kernels::kAngleUnit, centred_);
  }
}

// ---------------------------------------------------------------- queries

// The queries of a task as pairs of channels, in units of which one rotated pair fills 16 bits
// and the sum of all products 32; rotating keeps both true.
void AttentionOperator::prepare_rows(const Part& part, const Scratch& scratch) const {
  if (!plan_.byte_keys) {
    return;
  }
  for (int r = 0; r < part.n_kv * part.n_rows; r++) {
    prepare_row(part.first_kv + r / part.n_rows,
                scratch.queries + static_cast<std::size_t>(r) * call_.head_dim_k,
                scratch.pairs + static_cast<std::size_t>(r) * 2 * plan_.padded_pairs,
                scratch.factors + r);
  }
}

void AttentionOperator::prepare_row(int kv_head, const float* query, float* pairs,
                                    float* factor) const {
  const kernels::ChannelPair* components = call_.k.codec->tables()->component_pairs(kv_head);
  const bool placed = call_.k.codec->tables()->takes_components();
  const float* scales = call_.k.codec->tables()->scales(kv_head);
  const KeyPairs& key_pairs = call_.k.codec->tables()->pairs();
  const auto n_pairs = static_cast<int>(key_pairs.pairs.size());
  const float magnitude = call_.rope != nullptr ? std::abs(call_.rope->magnitude()) : 1.0F;
  float* y_pairs = pairs + plan_.padded_pairs;
  std::fill_n(pairs, 2 * plan_.padded_pairs, 0.0F);
  float largest = 0.0F;
  float total = 0.0F;
  for (int i = 0; i < n_pairs; i++) {
    const kernels::ChannelPair pair = key_pairs.pairs[i];
    const int at = placed ? call_.k.codec->tables()->places(kv_head)[i] : i;
    pairs[at] = query[pair.x] * scales[components[i].x];
    y_pairs[at] = pair.y != pair.x ? query[pair.y] * scales[components[i].y] : 0.0F;
    const float modulus = std::sqrt(pairs[at] * pairs[at] + y_pairs[at] * y_pairs[at]) *
                          (i < key_pairs.n_rotated() ? magnitude : 1.0F);
    largest = std::max(largest, modulus);
    total += modulus;
  }
  if (!std::isfinite(total)) {
    std::fill_n(pairs, 2 * plan_.padded_pairs, 0.0F);
    *factor = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float room = kLargestSum / kLargestKey - static_cast<float>(n_pairs + 100);
  const float scale =
      total > 0.0F ? std::min({kLargestQuery / largest, room / total, kLargestScale}) : 0.0F;
  *factor = scale > 0.0F ? 1.0F / (kKeyUnit * scale) : 0.0F;
  for (int i = 0; i < 2 * plan_.padded_pairs; i++) {
    pairs[i] *= scale;
  }
}

float* AttentionOperator::row_angles_of(const Scratch& scratch, int index) const {
  return scratch.row_angles + static_cast<std::size_t>(index) * 2 * plan_.padded_pairs;
}

// What queries are rotated back by: the position of the centre of a block that begins at `base`.
void AttentionOperator::load_row_angles(std::int64_t base, float* angles) const {
  float* sines = angles + plan_.padded_pairs;
  std::fill_n(angles, plan_.padded_pairs, 1.0F);
  std::fill_n(sines, plan_.padded_pairs, 0.0F);
  if (call_.rope != nullptr) {
    call_.rope->row(base + RopeTable::kBlockCentre, angles, sines);
  }
}

// Angles in the order in which a KV head's pairs are taken.
const float* AttentionOperator::place_row_angles(int kv_head, const float* angles,
                                                 const Scratch& scratch) const {
  const std::uint16_t* places = call_.k.codec->tables()->places(kv_head);
  const auto n_pairs = static_cast<int>(call_.k.codec->tables()->pairs().pairs.size());
  for (int i = 0; i < plan_.padded_pairs; i++) {
    const int at = i < n_pairs ? places[i] : i;
    scratch.placed_angles[at] = angles[i];
    scratch.placed_angles[plan_.padded_pairs + at] = angles[plan_.padded_pairs + i];
  }
  return scratch.placed_angles;
}

// The rows of KV head number `kv` for block number `index` of the chunk.
void AttentionOperator::rotate_rows(const Part& part, int kv, int index, std::uint32_t* to,
                                    const Scratch& scratch) const {
  const std::size_t row_floats = 2 * static_cast<std::size_t>(plan_.padded_pairs);
  const float* pairs = scratch.pairs + static_cast<std::size_t>(kv) * part.n_rows * row_floats;
  const float* angles = row_angles_of(scratch, index);
  if (call_.k.codec->tables()->takes_components()) {
    angles = place_row_angles(part.first_kv + kv, angles, scratch);
  }
  kernel_.rotate_queries(pairs, part.n_rows, plan_.padded_pairs, angles,
                         angles + plan_.padded_pairs, to);
}

// ---------------------------------------------------------------- codes

// The codes of one KV head of a block as the kernels read them: where they lie, or in `unpacked`.
const std::uint8_t* AttentionOperator::block_codes(const CacheSide& side, int kv_head,
                                                   const ViewBlock& block,
                                                   std::uint8_t* unpacked) const {
  const CodeLayout& layout = side.codec->layout();
  const int code_bits = layout.code_bits();
  const int n_groups = layout.n_groups(kv_head);
  if (!layout.spec.coded(kv_head)) {
    std::memset(unpacked, 0, static_cast<std::size_t>(n_groups) * unpacked_group_bytes(code_bits));
    return unpacked;
  }
  if (code_bits == 8) {
    if (block.block >= 0) {
      return side.data + layout.group_offset(block.block, kv_head, 0);
    }
    kernels::GatherCodes gather;
    gather.codes = side.data + layout.group_offset(0, kv_head, 0);
    gather.block_bytes = layout.block_bytes();
    gather.group_bytes = layout.group_bytes();
    gather.n_groups = n_groups;
    gather.pieces = views_.pieces(block);
    gather.n_pieces = block.n_pieces;
    gather.out = unpacked;
    kernel_.gather_codes(gather);
    return unpacked;
  }
  for (int g = 0; g < n_groups; g++) {
    std::uint16_t codes[kBlockCells];
    load_codes(side, kv_head, g, block, codes);
    if (code_bits > 8) {
      std::memcpy(unpacked + g * sizeof(codes), codes, sizeof(codes));
    } else {
      std::copy_n(codes, kBlockCells, unpacked + g * kBlockCells);
    }
  }
  return unpacked;
}

kernels::CodedBlocks AttentionOperator::coded_blocks(const CacheSide& side, int kv_head,
                                                     int head_dim, const Chunk& chunk,
                                                     std::uint8_t* unpacked) const {
  const CodeLayout& layout = side.codec->layout();
  const int group_dim = layout.spec.group_dim(kv_head);
  const int entry_dim = side.codec->tables()->entry_dim(group_dim);
  const int n_parts = group_dim / entry_dim;
  const int n_groups = layout.n_groups(kv_head);
  const std::size_t group_bytes = unpacked_group_bytes(layout.code_bits());
  kernels::CodedBlocks blocks;
  blocks.table = side.codec->tables()->table(kv_head);
  blocks.group_dim = entry_dim;
  blocks.code_bits = layout.code_bits();
  blocks.n_channels = head_dim;
  blocks.n_blocks = layout.spec.coded(kv_head) ? chunk.n : 1;  // without codes all are alike
  for (int i = 0; i < blocks.n_blocks; i++) {
    std::uint8_t* to = unpacked + static_cast<std::size_t>(i) * n_groups * n_parts * group_bytes;
    blocks.codes[i] = block_codes(side, kv_head, views_.block(chunk.blocks[i]), to);
    if (n_parts > 1) {
      blocks.codes[i] = repeat_codes(blocks.codes[i], n_groups, n_parts, group_bytes, to);
    }
  }
  return blocks;
}

kernels::ScoreCodes AttentionOperator::score_call(const Part& part, int kv, const Chunk& chunk,
                                                  const Scratch& scratch) const {
  const KeyPairs& key_pairs = call_.k.codec->tables()->pairs();
  kernels::ScoreCodes score;
  score.blocks =
      coded_blocks(call_.k, part.first_kv + kv, call_.head_dim_k, chunk, scratch.unpacked);
  score.n_pairs = static_cast<int>(key_pairs.pairs.size());
  if (call_.k.codec->tables()->takes_components()) {
    score.pairs = call_.k.codec->tables()->component_run();
    score.n_rotated = call_.rope != nullptr ? score.n_pairs : 0;
    score.rotation = call_.k.codec->tables()->angles(part.first_kv + kv);
  } else {
    score.pairs = call_.k.codec->tables()->component_pairs(part.first_kv + kv);
    score.n_rotated = key_pairs.n_turning;
    score.rotation = centred_;
  }
  const std::size_t block_words = static_cast<std::size_t>(part.n_rows) * plan_.padded_pairs;
  for (int i = 0; i < chunk.n; i++) {
    score.queries[i] = scratch.packed_rows + i * block_words;
  }
  score.query_stride = static_cast<std::size_t>(plan_.padded_pairs);
  score.n_rows = part.n_rows;
  score.factors = scratch.factors + static_cast<std::size_t>(kv) * part.n_rows;
  score.scratch = scratch.kernel;
  score.scores = scratch.scores;
  return score;
}

// Keys without codes are the same in every block: the rows of all blocks become rows of the one
// block, whose keys are then looked up and rotated once.
void AttentionOperator::merge_blocks(int n_blocks, kernels::ScoreCodes& score,
                                     const Scratch& scratch) {
  for (int i = 0; i < n_blocks; i++) {
    std::copy_n(score.factors, score.n_rows, scratch.chunk_factors + i * score.n_rows);
  }
  score.factors = scratch.chunk_factors;
  score.n_rows *= n_blocks;
}

void AttentionOperator::byte_scores(const Part& part, int kv, const Chunk& chunk,
                                    const Scratch& scratch) const {
  kernels::ScoreCodes score = score_call(part, kv, chunk, scratch);
  const std::size_t block_words = static_cast<std::size_t>(part.n_rows) * plan_.padded_pairs;
  for (int i = 0; i < chunk.n; i++) {
    rotate_rows(part, kv, i, scratch.packed_rows + i * block_words, scratch);
  }
  if (score.blocks.n_blocks < chunk.n) {
    merge_blocks(chunk.n, score, scratch);
  }
  key_kernel_.score_codes(score);
}

void AttentionOperator::byte_values(const Part& part, int kv, const Chunk& chunk,
                                    const Scratch& scratch) const {
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  const std::size_t mask_floats = static_cast<std::size_t>(plan_.tile_queries) * kBlockCells;
  const float scale = cap_scores(scratch.scores, chunk.n * part.n_rows);
  for (int i = 0; i < chunk.n; i++) {
    const std::size_t row = static_cast<std::size_t>(i) * part.n_rows;
    kernels::SoftmaxBytes step;
    step.scores = scratch.scores + row * kBlockCells;
    step.n_rows = part.n_rows;
    step.scale = scale;
    step.mask = scratch.mask + i * mask_floats;
    step.rows_per_mask = plan_.heads_per_kv;
    step.maxima = state.maxima;
    step.sums = state.sums;
    step.rescale = scratch.rescale + row;
    step.weights = scratch.weights + row;
    step.p = scratch.probabilities + row * kBlockCells;
    kernel_.softmax_bytes(step);
  }
  if (has_value_codes(part.first_kv + kv)) {
    accumulate(part, kv, chunk, scratch);
  } else {
    rescale_values(part, kv, chunk, scratch);
  }
  if (plan_.byte_sums()) {
    keep_probabilities(part, kv, chunk, scratch);
  }
}

void AttentionOperator::accumulate(const Part& part, int kv, const Chunk& chunk,
                                   const Scratch& scratch) const {
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  kernels::AccumulateCodes values;
  values.blocks =
      coded_blocks(call_.v, part.first_kv + kv, call_.head_dim_v, chunk, scratch.unpacked);
  values.p = scratch.probabilities;
  values.weights = scratch.weights;
  values.rescale = scratch.rescale;
  values.scales = call_.v.codec->tables()->scales(part.first_kv + kv);
  values.n_rows = part.n_rows;
  values.out = state.out;
  values.out_stride = static_cast<std::size_t>(plan_.channels);
  value_kernel_.accumulate_codes(values);
}

// Of a head without codes: what exact rows have added so far.
void AttentionOperator::rescale_values(const Part& part, int kv, const Chunk& chunk,
                                       const Scratch& scratch) const {
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels);
  for (int i = 0; i < chunk.n; i++) {
    for (int r = 0; r < part.n_rows; r++) {
      const float factor = scratch.rescale[i * part.n_rows + r];
      float* out = state.out + static_cast<std::size_t>(r) * plan_.channels;
      for (int d = 0; d < plan_.channels_v && factor != 1.0F; d++) {
        out[d] *= factor;
      }
    }
  }
}

// One step of the softmax states of KV head number `kv` of the task with the cells of a chunk
// that are seen coded.
void AttentionOperator::coded_step(const Part& part, int kv, const Chunk& chunk,
                                   const Scratch& scratch) const {
  if (plan_.byte_keys) {
    byte_scores(part, kv, chunk, scratch);
  } else {
    float_scores(part, kv, views_.block(chunk.blocks[0]), false, scratch);
  }
  if (plan_.byte_values) {
    byte_values(part, kv, chunk, scratch);
  } else {
    float_values(part, kv, views_.block(chunk.blocks[0]), false, scratch.mask, scratch);
  }
}

}  // namespace cqkv
