// Forwards every (head, block of queries) is a task. Backwards a task is a KV head and a
// stretch of queries, which sums its gradients by keys and values apart; the parts are
// added in order afterwards, so that the result does not depend on threads.
#include "model_pass/attention_pass.h"

#include <algorithm>
#include <cstring>

namespace cqkv {
namespace {

constexpr std::size_t kBlock = 48;  // queries; a multiple of every table's tile rows

}  // namespace

// Queries [first, first + n_queries) of one head; they see none but the keys
// [first_key, first_key + n_keys). Columns of scores count from first_key.
struct AttentionPass::Block {
  Block(const AttentionShape& shape, std::size_t head_index, std::size_t first_query,
        std::size_t panel)
      : head(head_index),
        kv_head(head_index / shape.heads_per_kv()),
        first(first_query),
        n_queries(std::min(kBlock, shape.n_tokens - first_query)),
        first_key(shape.first_seen(first_query) / panel * panel),
        n_keys(first + n_queries - first_key) {}

  std::size_t head;
  std::size_t kv_head;
  std::size_t first;
  std::size_t n_queries;
  std::size_t first_key;  // a panel's first column
  std::size_t n_keys;
};

namespace {

// Not a multiple of a page, so that rows do not fall into the same cache sets.
std::size_t score_stride(const AttentionShape& shape) {
  return (shape.n_tokens + 31) / 16 * 16 + 16;
}

// A right-hand side without its first `n` columns, which must be whole panels.
dense::PackedView skip_columns(dense::PackedView b, std::size_t n) {
  return {b.data + n * b.n_inner, b.n_inner, b.n_columns - n};
}

// The same without its first `n` rows. b.n_inner still tells the distance of panels: a
// product must say how many rows it takes.
dense::PackedView skip_rows(dense::PackedView b, std::size_t n, std::size_t panel) {
  return {b.data + n * panel, b.n_inner, b.n_columns};
}

// Columns [begin, end) of a row of scores: the keys that its query sees.
struct SeenColumns {
  std::size_t begin;
  std::size_t end;
  std::size_t n_columns;

  std::size_t size() const { return end - begin; }

  void clear_others(float* row) const {
    std::fill(row, row + begin, 0.0F);
    std::fill(row + end, row + n_columns, 0.0F);
  }
};

SeenColumns seen_columns(const AttentionShape& shape, std::size_t query, std::size_t first_key,
                         std::size_t n_keys) {
  return {shape.first_seen(query) - first_key, query + 1 - first_key, n_keys};
}

}  // namespace

// All memory of a pass is allocated here, since tasks must not throw.
void AttentionPass::allocate(const AttentionShape& shape, bool backward) {
  for (Scratch& scratch : scratch_) {
    scratch.scores.resize(kBlock * score_stride(shape));
    if (backward) {
      scratch.gradients.resize(kBlock * score_stride(shape));
      scratch.queries.resize(kBlock, shape.head_dim, table_.panel);
      scratch.out.resize(kBlock, shape.head_dim, table_.panel);
    }
  }
}

// For the columns that the queries of a block read exactly: the window's or the sinks', each from
// the beginning of a panel.
void AttentionPass::allocate_near(const AttentionShape& shape, bool near) {
  const std::size_t n_most = std::max(exact_.window + kBlock, exact_.sinks) + table_.panel;
  const std::size_t n = near ? std::min(n_most, shape.n_tokens) : 0;
  for (Scratch& scratch : scratch_) {
    scratch.near_scores.resize(kBlock * n);
    scratch.near_gradients.resize(kBlock * n);
  }
}

// Every KV head of `from`; nothing of nullptr.
void AttentionPass::pack_copy(const AttentionShape& shape, const float* from, bool transposed,
                              std::vector<dense::Packed>& to) {
  if (from == nullptr) {
    return;
  }
  to.resize(shape.n_kv_heads);
  for (dense::Packed& packed : to) {
    packed.resize(transposed ? shape.head_dim : shape.n_tokens,
                  transposed ? shape.n_tokens : shape.head_dim, table_.panel);
  }
  const auto stride = static_cast<std::ptrdiff_t>(shape.kv_stride());
  parallel_.run(static_cast<int>(shape.n_kv_heads), [&](int task, int) {
    const auto head = static_cast<std::size_t>(task);
    const dense::View plain{from + head * shape.head_dim, stride, 1};
    const dense::View view = transposed ? dense::transposed(plain) : plain;
    dense::Packed& packed = to[head];
    table_.pack(packed.data.data(), packed.n_inner, {0, packed.n_inner, 0, packed.n_columns}, view);
  });
}

void AttentionPass::pack_heads(const AttentionShape& shape, const AttentionRows& rows,
                               bool backward) {
  exact_ = rows.exact;
  has_coded_ = rows.coded.keys != nullptr;
  allocate(shape, backward);
  pack_copy(shape, rows.keys, true, keys_transposed_);
  pack_copy(shape, rows.coded.keys, true, coded_keys_transposed_);
  if (backward) {
    pack_copy(shape, rows.values, true, values_transposed_);
    pack_copy(shape, rows.coded.values, true, coded_values_transposed_);
    pack_copy(shape, rows.keys, false, keys_);
    pack_copy(shape, rows.coded.keys, false, coded_keys_);
  } else {
    pack_copy(shape, rows.values, false, values_);
    pack_copy(shape, rows.coded.values, false, coded_values_);
  }
}

// The columns outside which a block's queries read nothing exactly: the window's and the sinks'.
std::array<AttentionPass::Columns, 2> AttentionPass::near_columns(const Block& block) const {
  const std::size_t oldest = block.first + 1 - std::min(block.first + 1, exact_.window);
  const std::size_t window = std::max(oldest, block.first_key) - block.first_key;
  const std::size_t sinks = std::max(exact_.sinks, block.first_key) - block.first_key;
  return {Columns{window, block.n_keys}, Columns{0, std::min(sinks, window)}};
}

// c = a B^T over the block's keys, with rows of B of the copy that each query reads. `c` has the
// stride of scores.
void AttentionPass::multiply_by_columns(const AttentionShape& shape, const Block& block,
                                        dense::View a, const Copies& b, dense::Buffer& near,
                                        float* c) const {
  const std::size_t stride = score_stride(shape);
  const dense::Packed& all = (has_coded_ ? b.coded : b.own)[block.kv_head];
  table_.multiply({a, block.n_queries, skip_columns(all.view(), block.first_key), 0, block.n_keys,
                   c, stride, false});
  if (!has_coded_) {
    return;
  }
  for (const Columns columns : near_columns(block)) {
    const std::size_t begin = columns.begin / table_.panel * table_.panel;  // first_key is one's
    const std::size_t n = columns.end - begin;
    if (columns.begin >= columns.end) {
      continue;
    }
    table_.multiply({a, block.n_queries,
                     skip_columns(b.own[block.kv_head].view(), block.first_key + begin), 0, n,
                     near.data(), n, false});
    for (std::size_t i = 0; i < block.n_queries; i++) {
      put_near(block, i, columns, near.data() + i * n + columns.begin - begin, c + i * stride);
    }
  }
}

// Scores of some columns, from the first of them on, where the query reads exactly.
void AttentionPass::put_near(const Block& block, std::size_t query, Columns columns,
                             const float* near, float* row) const {
  for (std::size_t j = columns.begin; j < columns.end; j++) {
    if (exact_.holds(block.first + query, block.first_key + j)) {
      row[j] = near[j - columns.begin];
    }
  }
}

// Takes what queries read exactly out of some columns of scores.
dense::View AttentionPass::take_near(const AttentionShape& shape, const Block& block, Columns near,
                                     dense::Buffer& from, dense::Buffer& to) const {
  const std::size_t n = near.end - near.begin;
  for (std::size_t i = 0; i < block.n_queries; i++) {
    float* all = from.data() + i * score_stride(shape) + near.begin;
    float* taken = to.data() + i * n;
    for (std::size_t j = 0; j < n; j++) {
      const bool exact = exact_.holds(block.first + i, block.first_key + near.begin + j);
      taken[j] = exact ? all[j] : 0.0F;
      all[j] = exact ? 0.0F : all[j];
    }
  }
  return {to.data(), static_cast<std::ptrdiff_t>(n), 1};
}

// c (+)= a B over some of the block's keys, whose columns `a` has.
void AttentionPass::multiply_by_rows(const Block& block, dense::View a, const dense::Packed& b,
                                     Columns columns, bool accumulate, float* c,
                                     std::size_t c_stride) const {
  dense::Product product;
  product.a = a;
  product.n_rows = block.n_queries;
  product.b = skip_rows(b.view(), block.first_key + columns.begin, table_.panel);
  product.n_inner = columns.end - columns.begin;
  product.c = c;
  product.c_stride = c_stride;
  product.accumulate = accumulate;
  table_.multiply(product);
}

// scores = Q K^T, unscaled, of the block's keys.
void AttentionPass::score_block(const AttentionShape& shape, const AttentionRows& rows,
                                const Block& block, Scratch& scratch) const {
  const float* queries =
      rows.queries + block.first * shape.query_stride() + block.head * shape.head_dim;
  multiply_by_columns(shape, block, {queries, static_cast<std::ptrdiff_t>(shape.query_stride()), 1},
                      {keys_transposed_, coded_keys_transposed_}, scratch.near_scores,
                      scratch.scores.data());
}

void AttentionPass::forward_block(const AttentionShape& shape, const AttentionRows& rows,
                                  const Block& block, Scratch& scratch) const {
  const std::size_t stride = score_stride(shape);
  float* scores = scratch.scores.data();
  score_block(shape, rows, block, scratch);
  for (std::size_t i = 0; i < block.n_queries; i++) {
    const std::size_t token = block.first + i;
    const SeenColumns seen = seen_columns(shape, token, block.first_key, block.n_keys);
    float* row = scores + i * stride;
    rows.lse[block.head * shape.n_tokens + token] =
        table_.softmax(row + seen.begin, seen.size(), shape.scale);
    seen.clear_others(row);
  }
  float* out = rows.out + block.first * shape.query_stride() + block.head * shape.head_dim;
  const Columns all{0, block.n_keys};
  const dense::View weights{scores, static_cast<std::ptrdiff_t>(stride), 1};
  if (!has_coded_) {
    multiply_by_rows(block, weights, values_[block.kv_head], all, false, out, shape.query_stride());
    return;
  }
  bool accumulate = false;
  for (const Columns near : near_columns(block)) {
    if (near.begin < near.end) {
      const dense::View taken = take_near(shape, block, near, scratch.scores, scratch.near_scores);
      multiply_by_rows(block, taken, values_[block.kv_head], near, accumulate, out,
                       shape.query_stride());
      accumulate = true;
    }
  }
  multiply_by_rows(block, weights, coded_values_[block.kv_head], all, accumulate, out,
                   shape.query_stride());
}

void AttentionPass::forward(const AttentionShape& shape, const AttentionRows& rows) {
  pack_heads(shape, rows, false);
  allocate_near(shape, has_coded_);
  const std::size_t n_blocks = (shape.n_tokens + kBlock - 1) / kBlock;
  // Long blocks first, so that threads finish together.
  parallel_.run(static_cast<int>(n_blocks * shape.n_heads), [&](int task, int thread) {
    const auto index = static_cast<std::size_t>(task);
    const std::size_t block = n_blocks - 1 - index / shape.n_heads;
    forward_block(shape, rows, Block(shape, index % shape.n_heads, block * kBlock, table_.panel),
                  scratch_[static_cast<std::size_t>(thread)]);
  });
}

// Of the block's queries and keys: in scratch.scores the weights, in scratch.gradients the
// gradients by the unscaled scores; both 0 where a query does not see the key.
void AttentionPass::score_gradients(const AttentionShape& shape, const AttentionRows& rows,
                                    const AttentionGradients& gradients, const Block& block,
                                    Scratch& scratch) const {
  const std::size_t stride = score_stride(shape);
  const std::size_t offset = block.first * shape.query_stride() + block.head * shape.head_dim;
  float* weights = scratch.scores.data();
  float* by_score = scratch.gradients.data();
  score_block(shape, rows, block, scratch);
  // Gradient by the weights: dO V^T.
  const dense::View out{gradients.out + offset, static_cast<std::ptrdiff_t>(shape.query_stride()),
                        1};
  multiply_by_columns(shape, block, out, {values_transposed_, coded_values_transposed_},
                      scratch.near_gradients, by_score);
  for (std::size_t i = 0; i < block.n_queries; i++) {
    const std::size_t token = block.first + i;
    const std::size_t row = offset + i * shape.query_stride();
    const float delta = table_.dot(gradients.out + row, rows.out + row, shape.head_dim);
    const float lse = rows.lse[block.head * shape.n_tokens + token];
    const SeenColumns seen = seen_columns(shape, token, block.first_key, block.n_keys);
    float* w = weights + i * stride;
    float* g = by_score + i * stride;
    table_.exponentials(w + seen.begin, seen.size(), shape.scale, lse);
    table_.softmax_back(w + seen.begin, g + seen.begin, seen.size(), delta, shape.scale);
    seen.clear_others(w);
    seen.clear_others(g);
  }
}

// Adds to the sums of keys [begin, begin + n) what the block's queries give: `by_score` and
// `by_weight` are [n_queries, n].
void AttentionPass::sum_by_keys(const AttentionShape& shape, const Block& block, std::size_t begin,
                                std::size_t n, dense::View by_score, dense::View by_weight,
                                const Scratch& scratch, const Sums& sums) const {
  const std::size_t first = (block.first_key + begin) * shape.kv_stride();
  table_.multiply({transposed(by_score), n, scratch.queries.view(), 0, 0, sums.keys + first,
                   shape.kv_stride(), true});
  table_.multiply({transposed(by_weight), n, scratch.out.view(), 0, 0, sums.values + first,
                   shape.kv_stride(), true});
}

void AttentionPass::backward_block(const AttentionShape& shape, const AttentionRows& rows,
                                   const AttentionGradients& gradients, const Block& block,
                                   Scratch& scratch, const Sums& sums,
                                   const Sums& near_sums) const {
  const auto stride = static_cast<std::ptrdiff_t>(score_stride(shape));
  const auto query_stride = static_cast<std::ptrdiff_t>(shape.query_stride());
  const std::size_t offset = block.first * shape.query_stride() + block.head * shape.head_dim;
  score_gradients(shape, rows, gradients, block, scratch);
  const dense::View by_score{scratch.gradients.data(), stride, 1};
  const dense::View by_weight{scratch.scores.data(), stride, 1};
  float* by_query = gradients.queries + offset;
  const Columns all{0, block.n_keys};
  if (!has_coded_) {
    multiply_by_rows(block, by_score, keys_[block.kv_head], all, false, by_query,
                     shape.query_stride());
  }
  // Sums over the block's queries, for every key.
  const dense::PackPart packed{0, block.n_queries, 0, shape.head_dim};
  scratch.queries.resize(block.n_queries, shape.head_dim, table_.panel);
  scratch.out.resize(block.n_queries, shape.head_dim, table_.panel);
  table_.pack(scratch.queries.data.data(), block.n_queries, packed,
              {rows.queries + offset, query_stride, 1});
  table_.pack(scratch.out.data.data(), block.n_queries, packed,
              {gradients.out + offset, query_stride, 1});
  bool accumulate = false;
  for (const Columns near : near_columns(block)) {
    if (near_sums.keys == nullptr || near.begin >= near.end) {
      continue;
    }
    const dense::View score =
        take_near(shape, block, near, scratch.gradients, scratch.near_gradients);
    const dense::View weight = take_near(shape, block, near, scratch.scores, scratch.near_scores);
    sum_by_keys(shape, block, near.begin, near.end - near.begin, score, weight, scratch, near_sums);
    if (has_coded_) {
      multiply_by_rows(block, score, keys_[block.kv_head], near, accumulate, by_query,
                       shape.query_stride());
      accumulate = true;
    }
  }
  sum_by_keys(shape, block, 0, block.n_keys, by_score, by_weight, scratch, sums);
  if (has_coded_) {
    multiply_by_rows(block, by_score, coded_keys_[block.kv_head], all, accumulate, by_query,
                     shape.query_stride());
  }
}

// Stretches of queries summed apart: enough tasks for many threads, little memory.
std::size_t AttentionPass::n_parts(const AttentionShape& shape) const {
  constexpr std::size_t kTasks = 24;
  constexpr std::size_t kMaxParts = 8;
  const std::size_t n_blocks = (shape.n_tokens + kBlock - 1) / kBlock;
  return std::clamp(kTasks / shape.n_kv_heads, std::size_t{1}, std::min(kMaxParts, n_blocks));
}

// Sums of one KV head, of a part of the queries; zero.
AttentionPass::Sums AttentionPass::part_of(dense::Buffer& keys, dense::Buffer& values,
                                           const AttentionShape& shape, std::size_t part,
                                           std::size_t kv_head) {
  if (keys.size() == 0) {
    return {nullptr, nullptr};
  }
  const std::size_t begin = part * shape.n_tokens * shape.kv_stride() + kv_head * shape.head_dim;
  const Sums sums{keys.data() + begin, values.data() + begin};
  for (std::size_t t = 0; t < shape.n_tokens; t++) {
    std::memset(sums.keys + t * shape.kv_stride(), 0, shape.head_dim * sizeof(float));
    std::memset(sums.values + t * shape.kv_stride(), 0, shape.head_dim * sizeof(float));
  }
  return sums;
}

void AttentionPass::add_parts(const AttentionShape& shape, std::size_t n_parts,
                              const AttentionGradients& gradients, const FarGradients* far) {
  const std::size_t n_values = shape.n_tokens * shape.kv_stride();
  constexpr std::size_t kPiece = 16384;
  const auto n_pieces = static_cast<int>((n_values + kPiece - 1) / kPiece);
  // out[i] = sum over parts, in their order.
  const auto add = [&](const dense::Buffer& parts, std::size_t begin, std::size_t end, float* out) {
    for (std::size_t part = 0; part < n_parts; part++) {
      const float* from = parts.data() + part * n_values;
      for (std::size_t i = begin; i < end; i++) {
        out[i] = part == 0 ? from[i] : out[i] + from[i];
      }
    }
  };
  // And with far gradients: the near ones first, then both together.
  const auto add_all = [&](const dense::Buffer& parts, const dense::Buffer& near_parts,
                           std::size_t begin, std::size_t end, float* out, float* far_out) {
    if (far == nullptr) {
      add(parts, begin, end, out);
      return;
    }
    add(parts, begin, end, far_out);
    add(near_parts, begin, end, out);
    for (std::size_t i = begin; i < end; i++) {
      out[i] += far_out[i];
    }
  };
  parallel_.run(n_pieces, [&](int task, int) {
    const std::size_t begin = static_cast<std::size_t>(task) * kPiece;
    const std::size_t end = std::min(begin + kPiece, n_values);
    add_all(key_parts_, near_key_parts_, begin, end, gradients.keys,
            far == nullptr ? nullptr : far->keys);
    add_all(value_parts_, near_value_parts_, begin, end, gradients.values,
            far == nullptr ? nullptr : far->values);
  });
}

void AttentionPass::backward(const AttentionShape& shape, const AttentionRows& rows,
                             const AttentionGradients& gradients, const FarGradients* far) {
  pack_heads(shape, rows, true);
  const std::size_t n_part = n_parts(shape);
  const std::size_t n_sums = n_part * shape.n_tokens * shape.kv_stride();
  const std::size_t n_blocks = (shape.n_tokens + kBlock - 1) / kBlock;
  allocate_near(shape, far != nullptr);
  key_parts_.resize(n_sums);
  value_parts_.resize(n_sums);
  near_key_parts_.resize(far == nullptr ? 0 : n_sums);
  near_value_parts_.resize(far == nullptr ? 0 : n_sums);
  parallel_.run(static_cast<int>(n_part * shape.n_kv_heads), [&](int task, int thread) {
    const auto index = static_cast<std::size_t>(task);
    const std::size_t part = n_part - 1 - index / shape.n_kv_heads;
    const std::size_t kv_head = index % shape.n_kv_heads;
    const Sums sums = part_of(key_parts_, value_parts_, shape, part, kv_head);
    const Sums near_sums = part_of(near_key_parts_, near_value_parts_, shape, part, kv_head);
    const std::size_t first = part * n_blocks / n_part;
    const std::size_t last = (part + 1) * n_blocks / n_part;
    for (std::size_t block = first; block < last; block++) {
      for (std::size_t h = 0; h < shape.heads_per_kv(); h++) {
        const std::size_t head = kv_head * shape.heads_per_kv() + h;
        backward_block(shape, rows, gradients, Block(shape, head, block * kBlock, table_.panel),
                       scratch_[static_cast<std::size_t>(thread)], sums, near_sums);
      }
    }
  });
  add_parts(shape, n_part, gradients, far);
}

}  // namespace cqkv
