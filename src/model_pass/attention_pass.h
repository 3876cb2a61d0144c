// Causal attention over one whole sequence with f32 keys and values, over all of its
// tokens or a sliding window, forwards and backwards, in blocks of queries so that no
// score matrix is kept. This is the exact attention of the pass; attention on codes
// is src/attention.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "core/parallel.h"
#include "model_pass/dense.h"

namespace cqkv {

/// What a coded cache keeps exactly: a query reads the keys and values of the `window` tokens up to
/// its own and of the first `sinks` tokens without loss, and those of all others, the far ones,
/// as codes.
struct ExactTokens {
  std::size_t window = 0;
  std::size_t sinks = 0;

  bool holds(std::size_t query, std::size_t key) const {
    return key < sinks || key + window > query;
  }
};

struct AttentionShape {
  std::size_t n_tokens = 0;
  std::size_t n_heads = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;
  float scale = 1.0F;      ///< Of the scores.
  std::size_t window = 0;  ///< Keys that a query sees, its own the last; 0: all up to its own.

  /// The first key that a query sees.
  std::size_t first_seen(std::size_t query) const {
    return window == 0 || query < window ? 0 : query + 1 - window;
  }

  std::size_t query_stride() const { return n_heads * head_dim; }

  std::size_t kv_stride() const { return n_kv_heads * head_dim; }

  std::size_t heads_per_kv() const { return n_heads / n_kv_heads; }
};

/// A second copy of keys and values, which queries read to which a row is far: decoded codes.
struct CodedRows {
  const float* keys = nullptr;    ///< After RoPE; nullptr: there is no such copy.
  const float* values = nullptr;  ///< Given if the keys are.
};

/// Rows after RoPE: queries and out [n_tokens, n_heads, head_dim], keys and values
/// [n_tokens, n_kv_heads, head_dim], lse [n_heads, n_tokens].
struct AttentionRows {
  const float* queries = nullptr;
  const float* keys = nullptr;
  const float* values = nullptr;
  float* out = nullptr;
  float* lse = nullptr;    ///< Logarithm of the sum of exponentials, kept for the way back.
  ExactTokens exact = {};  ///< Which rows are far; says nothing without `coded` and FarGradients.
  CodedRows coded = {};
};

/// Gradients by the same; all overwritten but `out`, which is given.
struct AttentionGradients {
  const float* out = nullptr;
  float* queries = nullptr;
  float* keys = nullptr;
  float* values = nullptr;
};

/// The parts of the gradients by keys and values that flow through queries to which they are far
/// (AttentionRows::exact): the gradients by a second copy of them that only such queries read, be
/// it the same (no AttentionRows::coded) or another. Overwritten.
struct FarGradients {
  float* keys = nullptr;
  float* values = nullptr;
};

/// Owns the scratch memory of both ways; one call at a time.
///
///     out[t] = sum over s of softmax_s(scale * q[t] . k[s]) v[s],  first_seen(t) <= s <= t
///
/// with k[s] and v[s] of the second copy, if there is one, where s is far of t. Gradients by keys
/// and values are then the sums of those by both copies, as if they were one: what codes do with
/// small changes of a row is nothing that a gradient could tell.
///
/// Numerics: f32; results do not depend on the number of threads.
/// Cost: two products of n_tokens^2 / 2 * head_dim multiply-adds a head forwards, five
///   backwards; with a window about n_tokens * window * head_dim. Far gradients add
///   two products of n_tokens * (exact window) * head_dim, coded rows as many forwards and three.
class AttentionPass {
 public:
  AttentionPass(const dense::Table& table, ParallelFor& parallel)
      : table_(table), parallel_(parallel), scratch_(parallel.n_threads()) {}

  void forward(const AttentionShape& shape, const AttentionRows& rows);

  /// `rows.out` and `rows.lse` as `forward` left them. `far` may be null, but not of coded rows.
  void backward(const AttentionShape& shape, const AttentionRows& rows,
                const AttentionGradients& gradients, const FarGradients* far = nullptr);

 private:
  // Of one thread.
  struct Scratch {
    dense::Buffer scores;                       // [kBlock, score stride]
    dense::Buffer gradients;                    // the same
    dense::Buffer near_scores, near_gradients;  // [kBlock, near columns]
    dense::Packed queries;                      // [kBlock, head_dim]
    dense::Packed out;
  };

  struct Block;

  // Columns [begin, end) of a block's scores.
  struct Columns {
    std::size_t begin;
    std::size_t end;
  };

  // A packed right-hand side of one KV head, and that of the second copy.
  struct Copies {
    const std::vector<dense::Packed>& own;
    const std::vector<dense::Packed>& coded;
  };

  // Where the gradients by keys and values of one KV head are summed.
  struct Sums {
    float* keys;
    float* values;
  };

  void allocate(const AttentionShape& shape, bool backward);
  void allocate_near(const AttentionShape& shape, bool near);
  void pack_copy(const AttentionShape& shape, const float* from, bool transposed,
                 std::vector<dense::Packed>& to);
  void pack_heads(const AttentionShape& shape, const AttentionRows& rows, bool backward);
  void forward_block(const AttentionShape& shape, const AttentionRows& rows, const Block& block,
                     Scratch& scratch) const;
  void backward_block(const AttentionShape& shape, const AttentionRows& rows,
                      const AttentionGradients& gradients, const Block& block, Scratch& scratch,
                      const Sums& sums, const Sums& near_sums) const;
  void score_gradients(const AttentionShape& shape, const AttentionRows& rows,
                       const AttentionGradients& gradients, const Block& block,
                       Scratch& scratch) const;
  std::array<Columns, 2> near_columns(const Block& block) const;
  void multiply_by_columns(const AttentionShape& shape, const Block& block, dense::View a,
                           const Copies& b, dense::Buffer& near, float* c) const;
  void put_near(const Block& block, std::size_t query, Columns columns, const float* near,
                float* row) const;
  dense::View take_near(const AttentionShape& shape, const Block& block, Columns near,
                        dense::Buffer& from, dense::Buffer& to) const;
  void multiply_by_rows(const Block& block, dense::View a, const dense::Packed& b, Columns columns,
                        bool accumulate, float* c, std::size_t c_stride) const;
  void sum_by_keys(const AttentionShape& shape, const Block& block, std::size_t begin,
                   std::size_t n, dense::View by_score, dense::View by_weight,
                   const Scratch& scratch, const Sums& sums) const;
  void score_block(const AttentionShape& shape, const AttentionRows& rows, const Block& block,
                   Scratch& scratch) const;
  std::size_t n_parts(const AttentionShape& shape) const;
  Sums part_of(dense::Buffer& keys, dense::Buffer& values, const AttentionShape& shape,
               std::size_t part, std::size_t kv_head);
  void add_parts(const AttentionShape& shape, std::size_t n_parts,
                 const AttentionGradients& gradients, const FarGradients* far);

  const dense::Table& table_;
  ParallelFor& parallel_;
  std::vector<Scratch> scratch_;
  // Of each KV head: [head_dim, n_tokens] transposed and [n_tokens, head_dim] plain.
  std::vector<dense::Packed> keys_transposed_, values_transposed_, keys_, values_;
  // The same of the second copy.
  std::vector<dense::Packed> coded_keys_transposed_, coded_values_transposed_, coded_keys_,
      coded_values_;
  dense::Buffer key_parts_, value_parts_;            // [n_parts, n_tokens, n_kv_heads * head_dim]
  dense::Buffer near_key_parts_, near_value_parts_;  // the same; only with far gradients
  ExactTokens exact_;                                // of the call
  bool has_coded_ = false;                           // of the call
};

}  // namespace cqkv
