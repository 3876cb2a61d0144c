// What a task of an attention call does with the blocks of its ranges. The arithmetic is in the
// kernels; the order of operations that makes results independent of the cut is here:
//
//   for every range of kRangePositions, ascending       (a partial softmax state)
//     for every block of 64 positions, ascending          (one step of the state for
//       the cells seen coded, one for those seen exactly)
//   states of the ranges are merged in ascending order
//
// A task owns a tile of queries and some KV heads; with few queries and many
// threads it owns one range besides, and a second loop merges the ranges' states.
#include "attention/cpu/attention_operator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "kernels/dispatch.h"

namespace cqkv {

namespace {

// Whose kernels multiply with codes of that side, if any do.
const kernels::KernelTable& code_kernel(const CacheSide& side) {
  const kernels::KernelTable& kernel = kernels::active();
  const kernels::KernelTable* chosen =
      side.codec == nullptr ? nullptr
                            : kernels::integer_kernels(kernel, side.codec->spec().code_bits());
  return chosen == nullptr ? kernel : *chosen;
}

}  // namespace

AttentionOperator::AttentionOperator(const AttentionCall& call, const SequenceViews& views,
                                     int n_threads)
    : call_(call),
      views_(views),
      plan_(call, views, n_threads),
      kernel_(kernels::active()),
      key_kernel_(code_kernel(call.k)),
      value_kernel_(code_kernel(call.v)) {
}

std::size_t AttentionOperator::thread_bytes() const {
  Carver carver(nullptr);
  Scratch(call_, plan_, carver);
  return carver.used();
}

std::size_t AttentionOperator::shared_bytes() const {
  Carver carver(nullptr);
  carver.take<std::uint8_t>(plan_.n_visible);
  carver.take<std::int16_t>(plan_.angle_words());
  carver.take<float>(plan_.split_ranges ? n_partial_states() * plan_.partial_floats() : 0);
  return carver.used();
}

void AttentionOperator::use(std::uint8_t* shared, std::uint8_t* threads) {
  Carver carver(shared);
  visible_ = carver.take<std::uint8_t>(plan_.n_visible);
  centred_ = carver.take<std::int16_t>(plan_.angle_words());
  partials_ = carver.take<float>(0);
  threads_ = threads;
  thread_bytes_ = thread_bytes();
}

AttentionOperator::Part AttentionOperator::part_of(int tile, int first_kv, int n_kv) const {
  Part part = {};
  part.tile = &plan_.tiles[static_cast<std::size_t>(tile)];
  part.first_query = part.tile->first_query;
  part.n_queries = part.tile->n_queries;
  part.n_rows = part.n_queries * plan_.heads_per_kv;
  part.first_kv = first_kv;
  part.n_kv = std::min(n_kv, call_.n_kv_heads - first_kv);
  return part;
}

Scratch AttentionOperator::scratch_of(int thread) const {
  Carver carver(threads_ + thread * thread_bytes_);
  return {call_, plan_, carver};
}

SoftmaxState AttentionOperator::partial_of(int slice, int kv_head) const {
  const std::size_t index = static_cast<std::size_t>(slice) * call_.n_kv_heads + kv_head;
  float* base = partials_ + index * plan_.partial_floats();
  Carver carver(reinterpret_cast<std::uint8_t*>(base));
  SoftmaxState state;
  state.take(carver, plan_.tile_rows, plan_.channels);
  return state;
}

void AttentionOperator::gather_queries(const Part& part, const Scratch& scratch) const {
  const std::size_t row_bytes = static_cast<std::size_t>(call_.head_dim_k) * sizeof(float);
  float* to = scratch.queries;
  for (int kv = 0; kv < part.n_kv; kv++) {
    for (int i = 0; i < part.n_queries; i++) {
      for (int h = 0; h < plan_.heads_per_kv; h++) {
        const int head = (part.first_kv + kv) * plan_.heads_per_kv + h;
        std::memcpy(to,
                    call_.queries + head * call_.query_head_bytes +
                        (part.first_query + i) * call_.query_bytes,
                    row_bytes);
        to += call_.head_dim_k;
      }
    }
  }
}

// The next blocks that the tile sees, from `block` on, which moves behind them: one, or as many
// as may be taken together.
AttentionOperator::Chunk AttentionOperator::chunk_at(const Part& part, int& block, int last) const {
  Chunk chunk;
  for (; block < last && chunk.n < plan_.chunk_blocks; block++) {
    const unsigned seen = sees(*part.tile, block);
    if (seen == 0) {
      continue;
    }
    if (chunk.n > 0 && seen != kSeesCoded) {
      break;
    }
    chunk.blocks[chunk.n++] = block;
    chunk.seen = seen;
    if (seen != kSeesCoded) {
      block++;
      break;
    }
  }
  return chunk;
}

// A step of the states of all KV heads of the task over the cells of a chunk that are seen coded,
// and one over those that are seen exactly.
void AttentionOperator::run_chunk(const Part& part, const Chunk& chunk,
                                  const Scratch& scratch) const {
  for (int i = 0; i < chunk.n; i++) {
    prepare_block(part, chunk, i, scratch);
  }
  if ((chunk.seen & kSeesCoded) != 0) {
    for (int kv = 0; kv < part.n_kv; kv++) {
      coded_step(part, kv, chunk, scratch);
    }
    if (plan_.byte_sums()) {
      byte_key_sums(part, chunk, scratch);
    }
  }
  if ((chunk.seen & kSeesExact) != 0) {
    for (int kv = 0; kv < part.n_kv; kv++) {
      exact_step(part, kv, views_.block(chunk.blocks[0]), scratch);
    }
  }
}

// Leaves the states of one range of the tile in scratch.part.
void AttentionOperator::run_range(const Part& part, int range, const Scratch& scratch) const {
  const int last = views_.range_end(part.tile->view->first_range + range);
  scratch.part.clear(part.n_kv * part.n_rows, plan_.channels);
  int block = views_.range_begin(part.tile->view->first_range + range);
  while (block < last) {
    run_chunk(part, chunk_at(part, block, last), scratch);
  }
}

// Caps the scores of a step; returns by what they are still to be multiplied.
float AttentionOperator::cap_scores(float* scores, int n_rows) const {
  if (call_.softcap <= 0.0F) {
    return call_.scale;
  }
  kernel_.cap_scores(scores, static_cast<std::size_t>(n_rows) * kBlockCells,
                     call_.scale / call_.softcap, call_.softcap);
  return 1.0F;
}

// The outputs of a task whose states, in scratch.total, are complete.
void AttentionOperator::finish(const Part& part, const Scratch& scratch) const {
  add_value_means(part, scratch);
  if (call_.v.codec != nullptr && call_.v.codec->basis().has_rotation()) {
    turn_values(part, scratch);
  }
  if (call_.key_sums != nullptr) {
    add_key_sums(part, scratch.total, scratch);
  }
  write_out(part, scratch.total);
}

// Whether the values of a head are anything but their mean; exact ones always are.
bool AttentionOperator::has_value_codes(int kv_head) const {
  return call_.v.codec == nullptr || call_.v.codec->spec().coded(kv_head);
}

// Every cell of a head without codes has the same value, which steps leave out: it is there as
// often as the weights say.
void AttentionOperator::add_value_means(const Part& part, const Scratch& scratch) const {
  for (int kv = 0; kv < part.n_kv; kv++) {
    if (has_value_codes(part.first_kv + kv)) {
      continue;
    }
    const SoftmaxState state = scratch.total.at(kv, part.n_rows, plan_.channels);
    const std::uint16_t* mean = call_.v.codec->codebook().group(part.first_kv + kv, 0);
    for (int d = 0; d < call_.head_dim_v; d++) {
      const float value = half_to_float(mean[d]);
      for (int r = 0; r < part.n_rows; r++) {
        state.out[static_cast<std::size_t>(r) * plan_.channels + d] += value * state.sums[r];
      }
    }
  }
}

// Sums over components of values become sums over channels: 64 components of a row take the place
// of probabilities, rows of the inverse rotation that of values.
void AttentionOperator::turn_values(const Part& part, const Scratch& scratch) const {
  const auto channels = static_cast<std::size_t>(plan_.channels);
  const auto dim = static_cast<std::size_t>(call_.head_dim_v);
  std::fill_n(scratch.rescale, part.n_rows, 1.0F);
  for (int kv = 0; kv < part.n_kv; kv++) {
    const SoftmaxState to = scratch.total.at(kv, part.n_rows, plan_.channels);
    const float* components = scratch.part.out;
    std::copy_n(to.out, part.n_rows * channels, scratch.part.out);
    const TensorBasis& basis = call_.v.codec->basis();
    const float* matrix = basis.inverse(part.first_kv + kv);
    for (int r = 0; r < part.n_rows; r++) {
      std::fill_n(to.out + r * channels, plan_.channels_v, 0.0F);
    }
    for (std::size_t first = 0; first < dim; first += kBlockCells, components += kBlockCells) {
      const std::size_t n = std::min<std::size_t>(kBlockCells, dim - first);
      for (int r = 0; r < part.n_rows; r++) {
        float* row = scratch.scores + static_cast<std::size_t>(r) * kBlockCells;
        std::fill(std::copy_n(components + r * channels, n, row), row + kBlockCells, 0.0F);
      }
      kernel_.accumulate_rows(scratch.scores, part.n_rows, matrix + first * basis.inverse_stride(),
                              basis.inverse_stride(), plan_.channels_v, scratch.rescale, to.out,
                              channels);
    }
  }
}

void AttentionOperator::write_out(const Part& part, const SoftmaxState& state) const {
  const float* row = state.out;
  float result[kBlockCells];
  for (int r = 0; r < part.n_kv * part.n_rows; r++, row += plan_.channels) {
    const int kv = r / part.n_rows;
    const int query = r % part.n_rows / plan_.heads_per_kv;
    const int head = (part.first_kv + kv) * plan_.heads_per_kv + r % plan_.heads_per_kv;
    std::uint8_t* to =
        call_.out + head * call_.out_head_bytes + (part.first_query + query) * call_.out_bytes;
    float sum = state.sums[r];
    if (call_.sink_logits != nullptr) {
      sum += std::exp(call_.sink_logits[head] - state.maxima[r]);
    }
    const float factor = sum == 0.0F ? 0.0F : 1.0F / sum;  // NaN of a query that is none
    for (int d = 0; d < call_.head_dim_v; d += kBlockCells) {
      const int n = std::min(kBlockCells, call_.head_dim_v - d);
      for (int i = 0; i < n; i++) {
        // Adding 0 turns -0 into 0: whether a zero got a sign depends on skipped blocks.
        result[i] = row[d + i] * factor + 0.0F;
      }
      std::memcpy(to + d * sizeof(float), result, n * sizeof(float));
    }
  }
}

// The tile that has a slice.
int AttentionOperator::tile_of(int slice) const {
  const auto behind =
      std::upper_bound(plan_.tiles.begin(), plan_.tiles.end(), slice,
                       [](int value, const Tile& tile) { return value < tile.first_slice; });
  return static_cast<int>(behind - plan_.tiles.begin()) - 1;
}

void AttentionOperator::run_task(int task, int thread) {
  const int group = task % plan_.n_kv_groups;
  const int item = task / plan_.n_kv_groups;  // a slice, or a tile
  const int tile = plan_.split_ranges ? tile_of(item) : item;
  const Part part = part_of(tile, group * plan_.kv_per_task, plan_.kv_per_task);
  Scratch scratch = scratch_of(thread);
  if (!plan_.byte_values || call_.exact != nullptr) {
    // Padded channels of the values take part in the sums: they must be finite.
    std::fill_n(scratch.values, static_cast<std::size_t>(plan_.value_stride) * kBlockCells, 0.0F);
    std::fill_n(scratch.sum_rows, static_cast<std::size_t>(plan_.sum_stride) * kBlockCells, 0.0F);
  }
  gather_queries(part, scratch);
  prepare_rows(part, scratch);
  if (plan_.split_ranges) {
    const int range = item - part.tile->first_slice;
    if (sees_range(*part.tile, range)) {
      run_range(part, range, scratch);
      for (int kv = 0; kv < part.n_kv; kv++) {
        const SoftmaxState from = scratch.part.at(kv, part.n_rows, plan_.channels);
        const SoftmaxState to = partial_of(item, part.first_kv + kv);
        std::copy_n(from.maxima, part.n_rows, to.maxima);
        std::copy_n(from.sums, part.n_rows, to.sums);
        std::copy_n(from.out, static_cast<std::size_t>(part.n_rows) * plan_.channels, to.out);
      }
    }
    return;
  }
  const int n_rows = part.n_kv * part.n_rows;
  scratch.total.clear(n_rows, plan_.channels);
  for (int range = 0; range < part.tile->view->n_ranges; range++) {
    if (sees_range(*part.tile, range)) {
      run_range(part, range, scratch);
      kernel_.merge_rows(scratch.part.maxima, scratch.part.sums, scratch.part.out, n_rows,
                         plan_.channels, scratch.total.maxima, scratch.total.sums,
                         scratch.total.out);
    }
  }
  finish(part, scratch);
}

// Merges the ranges of one (tile, KV head): the same steps as the loop above.
void AttentionOperator::run_merge(int task, int thread) {
  const int tile = task / call_.n_kv_heads;
  const int kv_head = task % call_.n_kv_heads;
  const Part part = part_of(tile, kv_head, 1);
  const Scratch scratch = scratch_of(thread);
  scratch.total.clear(part.n_rows, plan_.channels);
  for (int range = 0; range < part.tile->view->n_ranges; range++) {
    if (sees_range(*part.tile, range)) {
      const SoftmaxState from = partial_of(part.tile->first_slice + range, kv_head);
      kernel_.merge_rows(from.maxima, from.sums, from.out, part.n_rows, plan_.channels,
                         scratch.total.maxima, scratch.total.sums, scratch.total.out);
    }
  }
  finish(part, scratch);
}

void AttentionOperator::run(ParallelFor& parallel) {
  pack_centred();
  if (plan_.n_tiles() == 1) {
    scan_tile(0);
  } else {
    parallel.run(plan_.n_tiles(), [this](int tile, int) { scan_tile(tile); });
  }
  parallel.run(plan_.n_tasks(), [this](int task, int thread) { run_task(task, thread); });
  if (plan_.split_ranges) {
    parallel.run(plan_.n_tiles() * call_.n_kv_heads,
                 [this](int task, int thread) { run_merge(task, thread); });
  }
}

}  // namespace cqkv
