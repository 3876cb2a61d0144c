// The attention operator: how a call is cut into tasks, and what a task does with
// a block of cells. The arithmetic is in the kernels; the order of operations that
// makes results independent of the cut is here:
//
//   for every range of kRangeCells cells, ascending       (a partial softmax state)
//     for every block of 64 cells, ascending              (one step of the state for
//       the cells seen coded, then one for those seen exactly)
//   states of the ranges are merged in ascending order
//
// A task owns a tile of queries and some KV heads; with few queries and many
// threads it owns one range besides, and a second loop merges the ranges' states.
#include "attention/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "attention/attention_plan.h"
#include "cache/exact_window.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

constexpr std::uint16_t kHalfMinusInfinity = 0xFC00;
// What the queries of a tile see of a block.
constexpr unsigned kSeesCoded = 1;
constexpr unsigned kSeesExact = 2;

// One call under way: everything that tasks share, read-only but for the memory
// that each task owns.
class Operator {
 public:
  Operator(const AttentionCall& call, int n_threads)
      : call_(call), plan_(call, n_threads), kernel_(kernels::active()) {}

  // Scratch memory: what every thread needs, what all share.
  std::size_t thread_bytes() const {
    Carver carver(nullptr);
    Scratch(call_, plan_, carver);
    return carver.used();
  }

  std::size_t shared_bytes() const {
    Carver carver(nullptr);
    carver.take<std::uint8_t>(static_cast<std::size_t>(plan_.n_tiles) * plan_.n_blocks);
    carver.take<float>(plan_.split_ranges ? n_partial_states() * plan_.partial_floats() : 0);
    return carver.used();
  }

  void use(std::uint8_t* shared, std::uint8_t* threads) {
    Carver carver(shared);
    visible_ = carver.take<std::uint8_t>(static_cast<std::size_t>(plan_.n_tiles) * plan_.n_blocks);
    partials_ = carver.take<float>(0);
    threads_ = threads;
    thread_bytes_ = thread_bytes();
  }

  void run(ParallelFor& parallel);

 private:
  // A tile of queries and some KV heads.
  struct Part {
    int tile;
    int first_query;
    int n_queries;
    int n_rows;  // n_queries times heads per KV head
    int first_kv;
    int n_kv;
  };

  std::size_t n_partial_states() const {
    return static_cast<std::size_t>(plan_.n_tiles) * call_.n_kv_heads * plan_.n_ranges;
  }

  Part part_of(int tile, int first_kv, int n_kv) const;
  Scratch scratch_of(int thread) const;
  SoftmaxState partial_of(int tile, int kv_head, int range) const;

  // What the queries of a tile see of a block: kSeesCoded, kSeesExact, both or nothing.
  unsigned sees(int tile, int block) const {
    return visible_[static_cast<std::size_t>(tile) * plan_.n_blocks + block];
  }

  bool has_exact_rows(int block) const;
  bool is_exact(int query, std::size_t cell) const;
  unsigned scan_exact_block(int tile, int block) const;

  bool sees_range(int tile, int range) const;
  void scan_mask(int tile);

  void run_task(int task, int thread);
  void run_merge(int task, int thread);

  void gather_queries(const Part& part, const Scratch& scratch) const;
  void run_range(const Part& part, int range, const Scratch& scratch) const;
  void prepare_block(const Part& part, int block, const Scratch& scratch) const;
  void load_mask(const Part& part, std::size_t cell, int n_cells, float* mask) const;
  void split_mask(const Part& part, int block, const Scratch& scratch) const;
  void step(const Part& part, int kv, int block, bool exact, const Scratch& scratch) const;
  void load_angles(const Part& part, std::size_t cell, int n_cells, const Scratch& scratch) const;
  void load_keys(int kv_head, int block, const Scratch& scratch) const;
  void load_exact_keys(int kv_head, int block, const Scratch& scratch) const;
  void rotate_keys(const Scratch& scratch) const;
  void load_values(int kv_head, int block, bool exact, const Scratch& scratch) const;
  void decode_rows(const CacheSide& side, int kv_head, int block, int head_dim,
                   const Scratch& scratch, float* rows, std::size_t stride) const;
  void add_exact(const ExactRows::Side& side, int kv_head, int block, int head_dim, float* rows,
                 std::size_t stride) const;
  void load_plain(const CacheSide& side, int kv_head, int block, int head_dim, float* rows,
                  std::size_t stride) const;
  void write_out(const Part& part, const SoftmaxState& state) const;

  int cells_of(int block) const {
    const std::size_t left = call_.n_cells - static_cast<std::size_t>(block) * kBlockCells;
    return static_cast<int>(std::min<std::size_t>(left, kBlockCells));
  }

  const AttentionCall& call_;
  Plan plan_;
  const kernels::KernelTable& kernel_;
  std::uint8_t* visible_ = nullptr;  // [tile, block]
  float* partials_ = nullptr;        // [tile, KV head, range] states
  std::uint8_t* threads_ = nullptr;
  std::size_t thread_bytes_ = 0;
};

Operator::Part Operator::part_of(int tile, int first_kv, int n_kv) const {
  Part part = {};
  part.tile = tile;
  part.first_query = tile * plan_.tile_queries;
  part.n_queries = std::min(plan_.tile_queries, call_.n_queries - part.first_query);
  part.n_rows = part.n_queries * plan_.heads_per_kv;
  part.first_kv = first_kv;
  part.n_kv = std::min(n_kv, call_.n_kv_heads - first_kv);
  return part;
}

Scratch Operator::scratch_of(int thread) const {
  Carver carver(threads_ + thread * thread_bytes_);
  return {call_, plan_, carver};
}

SoftmaxState Operator::partial_of(int tile, int kv_head, int range) const {
  const std::size_t index =
      (static_cast<std::size_t>(tile) * call_.n_kv_heads + kv_head) * plan_.n_ranges + range;
  float* base = partials_ + index * plan_.partial_floats();
  Carver carver(reinterpret_cast<std::uint8_t*>(base));
  SoftmaxState state;
  state.take(carver, plan_.tile_rows, plan_.channels_v);
  return state;
}

bool Operator::sees_range(int tile, int range) const {
  const int first = range * kBlocksPerRange;
  const int last = std::min(first + kBlocksPerRange, plan_.n_blocks);
  for (int block = first; block < last; block++) {
    if (sees(tile, block)) {
      return true;
    }
  }
  return false;
}

void Operator::scan_mask(int tile) {
  std::uint16_t hidden[kBlockCells];
  std::fill_n(hidden, kBlockCells, kHalfMinusInfinity);
  const Part part = part_of(tile, 0, 1);
  for (int block = 0; block < plan_.n_blocks; block++) {
    const std::size_t bytes = static_cast<std::size_t>(cells_of(block)) * sizeof(std::uint16_t);
    bool seen = call_.mask == nullptr;
    for (int i = 0; i < part.n_queries && !seen; i++) {
      const std::uint8_t* row = call_.mask + (part.first_query + i) * call_.mask_bytes;
      const std::size_t offset = static_cast<std::size_t>(block) * sizeof(hidden);
      seen = std::memcmp(row + offset, hidden, bytes) != 0;
    }
    const unsigned what = !seen                   ? 0
                          : has_exact_rows(block) ? scan_exact_block(tile, block)
                                                  : kSeesCoded;
    visible_[static_cast<std::size_t>(tile) * plan_.n_blocks + block] =
        static_cast<std::uint8_t>(what);
  }
}

bool Operator::has_exact_rows(int block) const {
  if (call_.exact == nullptr) {
    return false;
  }
  const std::int32_t* rows = call_.exact->rows + static_cast<std::size_t>(block) * kBlockCells;
  return std::any_of(rows, rows + cells_of(block), [](std::int32_t row) { return row >= 0; });
}

// Only where has_exact_rows.
bool Operator::is_exact(int query, std::size_t cell) const {
  const ExactRows& exact = *call_.exact;
  const std::int32_t row = exact.rows[cell];
  const std::int64_t ahead =
      static_cast<std::int64_t>(exact.query_positions[query]) - call_.positions[cell];
  return row >= 0 && (ahead < exact.window || exact.sinks[row] != 0);
}

unsigned Operator::scan_exact_block(int tile, int block) const {
  const Part part = part_of(tile, 0, 1);
  const MaskView mask{call_.mask, call_.mask_bytes};
  const std::size_t first = static_cast<std::size_t>(block) * kBlockCells;
  unsigned seen = 0;
  for (int i = part.first_query; i < part.first_query + part.n_queries; i++) {
    for (std::size_t cell = first; cell < first + cells_of(block); cell++) {
      if (mask.sees(static_cast<std::size_t>(i), cell)) {
        seen |= is_exact(i, cell) ? kSeesExact : kSeesCoded;
      }
    }
    if (seen == (kSeesCoded | kSeesExact)) {
      break;
    }
  }
  return seen;
}

void Operator::gather_queries(const Part& part, const Scratch& scratch) const {
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

void Operator::load_mask(const Part& part, std::size_t cell, int n_cells, float* mask) const {
  for (int i = 0; i < part.n_queries; i++) {
    float* row = mask + static_cast<std::size_t>(i) * kBlockCells;
    if (call_.mask == nullptr) {
      std::fill_n(row, n_cells, 0.0F);
    } else {
      const std::uint8_t* from = call_.mask + (part.first_query + i) * call_.mask_bytes;
      kernel_.half_to_float_n(
          reinterpret_cast<const std::uint16_t*>(from + cell * sizeof(std::uint16_t)),
          static_cast<std::size_t>(n_cells), row);
    }
    std::fill(row + n_cells, row + kBlockCells, kMinusInfinity);
  }
}

// Cells that no query sees may hold any position. They get the one that they would have
// in a block of consecutive ones, which RopeTable does fastest.
void Operator::load_angles(const Part& part, std::size_t cell, int n_cells,
                           const Scratch& scratch) const {
  float highest[kBlockCells];
  std::copy_n(scratch.mask, kBlockCells, highest);
  for (int i = 1; i < part.n_queries; i++) {
    const float* row = scratch.mask + static_cast<std::size_t>(i) * kBlockCells;
    for (int t = 0; t < kBlockCells; t++) {
      highest[t] = std::max(highest[t], row[t]);
    }
  }
  int first_seen = 0;
  while (first_seen < kBlockCells - 1 && !(highest[first_seen] > kMinusInfinity)) {
    first_seen++;
  }
  const std::int32_t known = call_.positions[cell + std::min(first_seen, n_cells - 1)];
  for (int t = 0; t < kBlockCells; t++) {
    const bool seen = highest[t] > kMinusInfinity;
    scratch.positions[t] = seen ? call_.positions[cell + t] : (known & ~(kBlockCells - 1)) + t;
  }
  call_.rope->block(scratch.positions, scratch.cosines, scratch.sines);
}

// Leaves in the mask what is seen coded, in the exact mask what is seen exactly.
void Operator::split_mask(const Part& part, int block, const Scratch& scratch) const {
  const std::size_t first = static_cast<std::size_t>(block) * kBlockCells;
  const int n_cells = cells_of(block);
  for (int i = 0; i < part.n_queries; i++) {
    float* coded = scratch.mask + static_cast<std::size_t>(i) * kBlockCells;
    float* exact = scratch.exact_mask + static_cast<std::size_t>(i) * kBlockCells;
    std::fill_n(exact, kBlockCells, kMinusInfinity);
    for (int t = 0; t < n_cells; t++) {
      if (is_exact(part.first_query + i, first + t)) {
        std::swap(coded[t], exact[t]);
      }
    }
  }
}

// What the KV heads of a task share: the masks and the angles.
void Operator::prepare_block(const Part& part, int block, const Scratch& scratch) const {
  const std::size_t cell = static_cast<std::size_t>(block) * kBlockCells;
  load_mask(part, cell, cells_of(block), scratch.mask);
  if (call_.rope != nullptr && call_.k.codebook != nullptr) {
    load_angles(part, cell, cells_of(block), scratch);
  }
  if ((sees(part.tile, block) & kSeesExact) != 0) {
    split_mask(part, block, scratch);
  }
}

void Operator::load_plain(const CacheSide& side, int kv_head, int block, int head_dim, float* rows,
                          std::size_t stride) const {
  const std::uint8_t* from = side.data + kv_head * side.head_bytes +
                             static_cast<std::size_t>(block) * kBlockCells * side.row_bytes;
  const int n_cells = cells_of(block);
  for (int t = 0; t < kBlockCells; t++) {
    float* row = rows + t * stride;
    if (t < n_cells) {
      kernel_.half_to_float_n(reinterpret_cast<const std::uint16_t*>(from + t * side.row_bytes),
                              static_cast<std::size_t>(head_dim), row);
    } else {
      std::fill_n(row, head_dim, 0.0F);
    }
  }
}

void Operator::load_keys(int kv_head, int block, const Scratch& scratch) const {
  const TensorCodebook* codebook = call_.k.codebook;
  if (codebook == nullptr) {
    const auto stride = static_cast<std::size_t>(call_.head_dim_k);
    load_plain(call_.k, kv_head, block, call_.head_dim_k, scratch.rows, stride);
    kernel_.transpose_rows(scratch.rows, stride, call_.head_dim_k, scratch.keys);
    return;
  }
  const CodecSpec spec = codebook->spec();
  const CodeLayout layout = {spec, call_.n_kv_heads, call_.head_dim_k};
  const std::uint8_t* codes = call_.k.data + layout.group_offset(block, kv_head, 0);
  float* tile = scratch.keys;
  for (int g = 0; g < layout.n_groups(); g++) {
    unpack_group(spec.code_bits, codes, scratch.codes);
    kernel_.decode_channels(codebook->group(kv_head, g), spec.group_dim, scratch.codes, tile);
    codes += layout.group_bytes();
    tile += static_cast<std::size_t>(spec.group_dim) * kBlockCells;
  }
  rotate_keys(scratch);
}

void Operator::rotate_keys(const Scratch& scratch) const {
  if (call_.rope != nullptr) {
    const RopeParams& rope = call_.rope->params();
    const bool neox = rope.mode == RopeMode::kNeox;
    kernel_.rotate_pairs(scratch.keys, rope.n_dims / 2, neox ? 1 : 2, neox ? rope.n_dims / 2 : 1,
                         scratch.cosines, scratch.sines);
  }
}

// The keys of a block, with their residuals where cells have exact rows.
void Operator::load_exact_keys(int kv_head, int block, const Scratch& scratch) const {
  if (call_.k.codebook == nullptr) {
    load_keys(kv_head, block, scratch);  // exact as they are
    return;
  }
  const auto stride = static_cast<std::size_t>(call_.head_dim_k);
  decode_rows(call_.k, kv_head, block, call_.head_dim_k, scratch, scratch.rows, stride);
  add_exact(call_.exact->k, kv_head, block, call_.head_dim_k, scratch.rows, stride);
  kernel_.transpose_rows(scratch.rows, stride, call_.head_dim_k, scratch.keys);
  rotate_keys(scratch);
}

// Adds the residuals of one head of the cells of a block that have exact rows.
void Operator::add_exact(const ExactRows::Side& side, int kv_head, int block, int head_dim,
                         float* rows, std::size_t stride) const {
  const ExactRowLayout layout{call_.n_kv_heads * head_dim};
  const std::int32_t* row_of = call_.exact->rows + static_cast<std::size_t>(block) * kBlockCells;
  for (int t = 0; t < cells_of(block); t++) {
    const std::int32_t row = row_of[t];
    if (row >= 0) {
      const bool pool = row < call_.exact->n_pool;
      const auto index = static_cast<std::size_t>(pool ? row : row - call_.exact->n_pool);
      add_exact_row(layout, (pool ? side.pool : side.batch) + index * layout.row_bytes(),
                    kv_head * head_dim, head_dim, rows + t * stride);
    }
  }
}

// Decodes the rows of one head of a block, token by token.
void Operator::decode_rows(const CacheSide& side, int kv_head, int block, int head_dim,
                           const Scratch& scratch, float* rows, std::size_t stride) const {
  const CodecSpec spec = side.codebook->spec();
  const CodeLayout layout = {spec, call_.n_kv_heads, head_dim};
  const std::uint8_t* codes = side.data + layout.group_offset(block, kv_head, 0);
  for (int g = 0; g < layout.n_groups(); g++) {
    unpack_group(spec.code_bits, codes, scratch.codes);
    kernel_.decode_tokens(side.codebook->group(kv_head, g), spec.group_dim, scratch.codes,
                          rows + static_cast<std::size_t>(g) * spec.group_dim, stride);
    codes += layout.group_bytes();
  }
}

void Operator::load_values(int kv_head, int block, bool exact, const Scratch& scratch) const {
  const auto stride = static_cast<std::size_t>(plan_.value_stride);
  if (call_.v.codebook == nullptr) {
    load_plain(call_.v, kv_head, block, call_.head_dim_v, scratch.values, stride);
    return;
  }
  decode_rows(call_.v, kv_head, block, call_.head_dim_v, scratch, scratch.values, stride);
  if (exact) {
    add_exact(call_.exact->v, kv_head, block, call_.head_dim_v, scratch.values, stride);
  }
}

// One step of the softmax states of KV head number `kv` of the task, with the cells of a
// block that are seen coded, or with those that are seen exactly.
void Operator::step(const Part& part, int kv, int block, bool exact, const Scratch& scratch) const {
  const auto query_stride = static_cast<std::size_t>(call_.head_dim_k);
  const SoftmaxState state = scratch.part.at(kv, part.n_rows, plan_.channels_v);
  const int kv_head = part.first_kv + kv;
  if (exact) {
    load_exact_keys(kv_head, block, scratch);
  } else {
    load_keys(kv_head, block, scratch);
  }
  kernel_.score_rows(scratch.queries + kv * part.n_rows * query_stride, query_stride, part.n_rows,
                     call_.head_dim_k, scratch.keys, scratch.scores);
  kernel_.softmax_rows(scratch.scores, part.n_rows, call_.scale,
                       exact ? scratch.exact_mask : scratch.mask, plan_.heads_per_kv, state.maxima,
                       state.sums, scratch.rescale);
  load_values(kv_head, block, exact, scratch);
  kernel_.accumulate_rows(scratch.scores, part.n_rows, scratch.values,
                          static_cast<std::size_t>(plan_.value_stride), plan_.channels_v,
                          scratch.rescale, state.out, static_cast<std::size_t>(plan_.channels_v));
}

// Leaves the states of one range in scratch.part.
void Operator::run_range(const Part& part, int range, const Scratch& scratch) const {
  const int last = std::min((range + 1) * kBlocksPerRange, plan_.n_blocks);
  scratch.part.clear(part.n_kv * part.n_rows, plan_.channels_v);
  for (int block = range * kBlocksPerRange; block < last; block++) {
    const unsigned seen = sees(part.tile, block);
    if (seen == 0) {
      continue;
    }
    prepare_block(part, block, scratch);
    for (int kv = 0; kv < part.n_kv; kv++) {
      if ((seen & kSeesCoded) != 0) {
        step(part, kv, block, false, scratch);
      }
      if ((seen & kSeesExact) != 0) {
        step(part, kv, block, true, scratch);
      }
    }
  }
}

void Operator::write_out(const Part& part, const SoftmaxState& state) const {
  const float* row = state.out;
  const float* sum = state.sums;
  float result[kBlockCells];
  for (int r = 0; r < part.n_kv * part.n_rows; r++, row += plan_.channels_v, sum++) {
    const int kv = r / part.n_rows;
    const int query = r % part.n_rows / plan_.heads_per_kv;
    const int head = (part.first_kv + kv) * plan_.heads_per_kv + r % plan_.heads_per_kv;
    std::uint8_t* to =
        call_.out + head * call_.out_head_bytes + (part.first_query + query) * call_.out_bytes;
    const float factor = *sum > 0.0F ? 1.0F / *sum : 0.0F;
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

void Operator::run_task(int task, int thread) {
  const int n_slices = plan_.split_ranges ? plan_.n_ranges : 1;
  const int slice = task % n_slices;
  const int group = task / n_slices % plan_.n_kv_groups;
  const int tile = task / n_slices / plan_.n_kv_groups;
  const Part part = part_of(tile, group * plan_.kv_per_task, plan_.kv_per_task);
  Scratch scratch = scratch_of(thread);
  // Padded channels of the values take part in the sums: they must be finite.
  std::fill_n(scratch.values, static_cast<std::size_t>(plan_.value_stride) * kBlockCells, 0.0F);
  gather_queries(part, scratch);
  if (plan_.split_ranges) {
    if (sees_range(tile, slice)) {
      run_range(part, slice, scratch);
      for (int kv = 0; kv < part.n_kv; kv++) {
        const SoftmaxState from = scratch.part.at(kv, part.n_rows, plan_.channels_v);
        const SoftmaxState to = partial_of(tile, part.first_kv + kv, slice);
        std::copy_n(from.maxima, part.n_rows, to.maxima);
        std::copy_n(from.sums, part.n_rows, to.sums);
        std::copy_n(from.out, static_cast<std::size_t>(part.n_rows) * plan_.channels_v, to.out);
      }
    }
    return;
  }
  const int n_rows = part.n_kv * part.n_rows;
  scratch.total.clear(n_rows, plan_.channels_v);
  for (int range = 0; range < plan_.n_ranges; range++) {
    if (sees_range(tile, range)) {
      run_range(part, range, scratch);
      kernel_.merge_rows(scratch.part.maxima, scratch.part.sums, scratch.part.out, n_rows,
                         plan_.channels_v, scratch.total.maxima, scratch.total.sums,
                         scratch.total.out);
    }
  }
  write_out(part, scratch.total);
}

// Merges the ranges of one (tile, KV head): the same steps as the loop above.
void Operator::run_merge(int task, int thread) {
  const int tile = task / call_.n_kv_heads;
  const int kv_head = task % call_.n_kv_heads;
  const Part part = part_of(tile, kv_head, 1);
  const Scratch scratch = scratch_of(thread);
  scratch.total.clear(part.n_rows, plan_.channels_v);
  for (int range = 0; range < plan_.n_ranges; range++) {
    if (sees_range(tile, range)) {
      const SoftmaxState from = partial_of(tile, kv_head, range);
      kernel_.merge_rows(from.maxima, from.sums, from.out, part.n_rows, plan_.channels_v,
                         scratch.total.maxima, scratch.total.sums, scratch.total.out);
    }
  }
  write_out(part, scratch.total);
}

void Operator::run(ParallelFor& parallel) {
  if (plan_.n_tiles == 1) {
    scan_mask(0);
  } else {
    parallel.run(plan_.n_tiles, [this](int tile, int) { scan_mask(tile); });
  }
  parallel.run(plan_.n_tasks(), [this](int task, int thread) { run_task(task, thread); });
  if (plan_.split_ranges) {
    parallel.run(plan_.n_tiles * call_.n_kv_heads,
                 [this](int task, int thread) { run_merge(task, thread); });
  }
}

Status check_side(const CacheSide& side, std::string_view name, int n_kv_heads, int head_dim,
                  std::size_t n_cells) {
  if (n_cells > 0 && side.data == nullptr) {
    return invalid_argument("attention: no " + std::string(name));
  }
  const TensorCodebook* codebook = side.codebook;
  if (codebook != nullptr &&
      (codebook->n_kv_heads() != n_kv_heads || codebook->head_dim() != head_dim)) {
    return invalid_argument("attention: the codebook of the " + std::string(name) + " is for " +
                            std::to_string(codebook->n_kv_heads()) + " KV heads of " +
                            std::to_string(codebook->head_dim()) + " channels, the call has " +
                            std::to_string(n_kv_heads) + " of " + std::to_string(head_dim));
  }
  return {};
}

Status check_exact(const AttentionCall& call) {
  const ExactRows& exact = *call.exact;
  if (exact.rows == nullptr || exact.sinks == nullptr || exact.query_positions == nullptr ||
      call.positions == nullptr) {
    return invalid_argument("attention: exact rows without rows, sinks or positions");
  }
  const auto incomplete = [](const CacheSide& side, const ExactRows::Side& rows) {
    return side.codebook != nullptr && (rows.pool == nullptr || rows.batch == nullptr);
  };
  if (incomplete(call.k, exact.k) || incomplete(call.v, exact.v)) {
    return invalid_argument("attention: a coded side without exact rows");
  }
  return {};
}

Status check(const AttentionCall& call) {
  if (call.n_kv_heads <= 0 || call.n_heads <= 0 || call.n_heads % call.n_kv_heads != 0) {
    return invalid_argument("attention: got " + std::to_string(call.n_heads) + " heads and " +
                            std::to_string(call.n_kv_heads) +
                            " KV heads, want a multiple of KV heads");
  }
  if (call.head_dim_k <= 0 || call.head_dim_v <= 0 || call.n_queries < 0) {
    return invalid_argument("attention: got head sizes " + std::to_string(call.head_dim_k) +
                            " and " + std::to_string(call.head_dim_v) + " and " +
                            std::to_string(call.n_queries) + " queries");
  }
  if (call.n_cells > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    return invalid_argument("attention: got " + std::to_string(call.n_cells) +
                            " cells, want fewer than 2^31");
  }
  if (call.n_queries > 0 && (call.queries == nullptr || call.out == nullptr)) {
    return invalid_argument("attention: no queries or no output");
  }
  CQKV_RETURN_IF_ERROR(check_side(call.k, "keys", call.n_kv_heads, call.head_dim_k, call.n_cells));
  CQKV_RETURN_IF_ERROR(
      check_side(call.v, "values", call.n_kv_heads, call.head_dim_v, call.n_cells));
  if (call.exact != nullptr) {
    CQKV_RETURN_IF_ERROR(check_exact(call));
  }
  if (call.rope != nullptr && call.k.codebook != nullptr) {
    if (call.positions == nullptr && call.n_cells > 0) {
      return invalid_argument("attention: keys are to be rotated, but there are no positions");
    }
    return call.rope->params().check(call.head_dim_k);
  }
  return {};
}

}  // namespace

struct AttentionWorkspace::Impl {
  AlignedBuffer shared;
  AlignedBuffer threads;
};

AttentionWorkspace::AttentionWorkspace() : impl_(new (std::nothrow) Impl) {
}

AttentionWorkspace::~AttentionWorkspace() {
  delete impl_;
}

AttentionWorkspace::AttentionWorkspace(AttentionWorkspace&& other) noexcept
    : impl_(std::exchange(other.impl_, nullptr)) {
}

AttentionWorkspace& AttentionWorkspace::operator=(AttentionWorkspace&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

Status attend(const AttentionCall& call, ParallelFor& parallel, AttentionWorkspace& workspace) {
  CQKV_RETURN_IF_ERROR(check(call));
  if (call.n_queries == 0) {
    return {};
  }
  Operator op(call, parallel.n_threads());
  const std::size_t shared = op.shared_bytes();
  const std::size_t threads = op.thread_bytes() * parallel.n_threads();
  if (workspace.impl_ == nullptr) {
    workspace.impl_ = new (std::nothrow) AttentionWorkspace::Impl;
  }
  if (workspace.impl_ == nullptr || !workspace.impl_->shared.reserve(shared) ||
      !workspace.impl_->threads.reserve(threads)) {
    return {StatusCode::kResourceExhausted, "attention: no memory for " +
                                                std::to_string(shared + threads) +
                                                " bytes of working memory"};
  }
  op.use(workspace.impl_->shared.data(), workspace.impl_->threads.data());
  op.run(parallel);
  return {};
}

}  // namespace cqkv
