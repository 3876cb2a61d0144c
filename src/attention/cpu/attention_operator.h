// One attention call: the class that `attend` runs. Its members are in five files:
//
//   attention_operator.cpp  tasks, ranges and chunks of blocks, merging
//   visible_blocks.cpp      what the queries of a tile see of a block: masks, exact rows, angles
//   float_step.cpp          a step over plain rows, exact rows and codes without byte tables
//   byte_step.cpp           a step over codes with byte tables, by the integer kernels
//   key_sum_step.cpp        sums over keys beside those over values
//
// Internal to this folder.
#pragma once

#include "attention/attention.h"
#include "attention/cpu/scratch.h"
#include "kernels/kernel_table.h"

namespace cqkv {

/// Everything that tasks share, read-only but for the memory that each task owns.
class AttentionOperator {
 public:
  /// `views` are the call's. May throw std::bad_alloc.
  AttentionOperator(const AttentionCall& call, const SequenceViews& views, int n_threads);

  // Scratch memory: what every thread needs, what all share.
  std::size_t thread_bytes() const;
  std::size_t shared_bytes() const;

  void use(std::uint8_t* shared, std::uint8_t* threads);
  void run(ParallelFor& parallel);

 private:
  // What the queries of a tile see of a block: cells as codes, and cells exactly.
  static constexpr unsigned kSeesCoded = 1;
  static constexpr unsigned kSeesExact = 2;

  // A tile of queries and some KV heads.
  struct Part {
    const Tile* tile;
    int first_query;
    int n_queries;
    int n_rows;  // n_queries times heads per KV head
    int first_kv;
    int n_kv;
  };

  // Blocks that a task works on together.
  struct Chunk {
    int blocks[kernels::kMaxChunk];
    int n = 0;
    unsigned seen = 0;
  };

  std::size_t n_partial_states() const {
    return static_cast<std::size_t>(plan_.n_slices) * call_.n_kv_heads;
  }

  Part part_of(int tile, int first_kv, int n_kv) const;
  Scratch scratch_of(int thread) const;
  SoftmaxState partial_of(int slice, int kv_head) const;

  // attention.cpp
  int tile_of(int slice) const;
  void run_task(int task, int thread);
  void run_merge(int task, int thread);
  void gather_queries(const Part& part, const Scratch& scratch) const;
  Chunk chunk_at(const Part& part, int& block, int last) const;
  void run_chunk(const Part& part, const Chunk& chunk, const Scratch& scratch) const;
  void run_range(const Part& part, int range, const Scratch& scratch) const;
  float cap_scores(float* scores, int n_rows) const;
  void finish(const Part& part, const Scratch& scratch) const;
  void turn_values(const Part& part, const Scratch& scratch) const;
  bool has_value_codes(int kv_head) const;
  void add_value_means(const Part& part, const Scratch& scratch) const;
  void write_out(const Part& part, const SoftmaxState& state) const;

  // visible_blocks.cpp
  unsigned sees(const Tile& tile, int block) const {
    return visible_[tile.visible + static_cast<std::size_t>(block - tile.view->first_block)];
  }

  bool sees_range(const Tile& tile, int range) const;
  void scan_tile(int tile);
  bool has_exact_rows(const ViewBlock& block) const;
  bool is_exact(int query, std::int32_t cell) const;
  unsigned scan_block(const Part& part, const ViewBlock& block) const;
  void prepare_block(const Part& part, const Chunk& chunk, int index, const Scratch& scratch) const;
  void gather_mask(int query, const ViewBlock& block, std::uint16_t* mask) const;
  void load_mask(const Part& part, const ViewBlock& block, float* mask) const;
  void split_exact(const Part& part, const ViewBlock& block, const Scratch& scratch) const;
  void load_angles(const ViewBlock& block, const Scratch& scratch) const;

  // float_step.cpp
  void exact_step(const Part& part, int kv, const ViewBlock& block, const Scratch& scratch) const;
  void float_scores(const Part& part, int kv, const ViewBlock& block, bool exact,
                    const Scratch& scratch) const;
  void float_values(const Part& part, int kv, const ViewBlock& block, bool exact, const float* mask,
                    const Scratch& scratch) const;
  void load_codes(const CacheSide& side, int kv_head, int group, const ViewBlock& block,
                  std::uint16_t* codes) const;
  void load_keys(int kv_head, const ViewBlock& block, const Scratch& scratch) const;
  void load_exact_keys(int kv_head, const ViewBlock& block, const Scratch& scratch) const;
  void rotate_keys(int kv_head, const Scratch& scratch) const;
  void load_values(int kv_head, const ViewBlock& block, bool exact, const Scratch& scratch) const;
  void decode_rows(const CacheSide& side, int kv_head, const ViewBlock& block, int head_dim,
                   const Scratch& scratch, float* rows, std::size_t stride) const;
  void add_exact(const ExactRows::Side& side, int kv_head, const ViewBlock& block, int head_dim,
                 float* rows, std::size_t stride) const;
  void load_plain(const CacheSide& side, int kv_head, const ViewBlock& block, int head_dim,
                  float* rows, std::size_t stride) const;

  // byte_step.cpp
  void pack_centred() const;
  void prepare_rows(const Part& part, const Scratch& scratch) const;
  void prepare_row(int kv_head, const float* query, float* pairs, float* factor) const;
  const float* place_row_angles(int kv_head, const float* angles, const Scratch& scratch) const;
  float* row_angles_of(const Scratch& scratch, int index) const;
  void load_row_angles(std::int64_t base, float* angles) const;
  kernels::CodedBlocks coded_blocks(const CacheSide& side, int kv_head, int head_dim,
                                    const Chunk& chunk, std::uint8_t* unpacked) const;
  const std::uint8_t* block_codes(const CacheSide& side, int kv_head, const ViewBlock& block,
                                  std::uint8_t* unpacked) const;
  void coded_step(const Part& part, int kv, const Chunk& chunk, const Scratch& scratch) const;
  kernels::ScoreCodes score_call(const Part& part, int kv, const Chunk& chunk,
                                 const Scratch& scratch) const;
  void byte_scores(const Part& part, int kv, const Chunk& chunk, const Scratch& scratch) const;
  void rotate_rows(const Part& part, int kv, int index, std::uint32_t* to,
                   const Scratch& scratch) const;
  static void merge_blocks(int n_blocks, kernels::ScoreCodes& score, const Scratch& scratch);
  void byte_values(const Part& part, int kv, const Chunk& chunk, const Scratch& scratch) const;
  void accumulate(const Part& part, int kv, const Chunk& chunk, const Scratch& scratch) const;
  void rescale_values(const Part& part, int kv, const Chunk& chunk, const Scratch& scratch) const;

  // key_sum_step.cpp
  void keep_probabilities(const Part& part, int kv, const Chunk& chunk,
                          const Scratch& scratch) const;
  const std::uint8_t* key_codes(const ViewBlock& block, const Scratch& scratch,
                                std::uint8_t* to) const;
  void byte_key_sums(const Part& part, const Chunk& chunk, const Scratch& scratch) const;
  void float_key_sums(const Part& part, int kv, const ViewBlock& block,
                      const Scratch& scratch) const;
  void rescale_key_sums(const Part& part, int kv, const Scratch& scratch) const;
  void add_key_sums(const Part& part, const SoftmaxState& state, const Scratch& scratch) const;

  const AttentionCall& call_;
  const SequenceViews& views_;
  Plan plan_;
  const kernels::KernelTable& kernel_;
  const kernels::KernelTable& key_kernel_;  // for the codes of keys, in scores and in sums
  const kernels::KernelTable& value_kernel_;
  std::uint8_t* visible_ = nullptr;  // of each tile [block of its view]
  std::int16_t* centred_ = nullptr;  // RopeTable::centred, packed
  float* partials_ = nullptr;        // [slice, KV head] states
  std::uint8_t* threads_ = nullptr;
  std::size_t thread_bytes_ = 0;
};

}  // namespace cqkv
