// Random attention calls with buffers of exactly the size that the call may read,
// so that the address sanitizer sees an overread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "attention/attention.h"
#include "core/half.h"
#include "core/rng.h"
#include "kernels/dispatch.h"
#include "support/codebooks.h"
#include "support/exact_buffer.h"

namespace cqkv {

/// What a call looks like; group_dim 0 means plain rows.
struct AttentionShape {
  CodecSpec k{8, 8};
  CodecSpec v{8, 8};
  int n_kv_heads = 2;
  int heads_per_kv = 1;
  int head_dim_k = 64;
  int head_dim_v = 64;
  int n_queries = 1;
  std::size_t n_cells = 100;
  bool causal = false;  ///< Query i sees the cells up to n_cells - n_queries + i.
  bool with_mask = true;
  bool scrambled = false;  ///< Positions in random order.
  /// Every third cell or so has an exact row, in pool or batch; queries are spread over
  /// positions so that some cells are inside the window and some are not.
  bool exact_rows = false;
  int window = 30;
  /// Sum every n-th key group; 0: none.
  int sum_every = 0;
  float softcap = 0.0F;
  bool sink_logits = false;  ///< Of each head one about as large as the largest scores.
  /// Coded sides have byte tables, for the kernels in use when call() is called.
  bool byte_tables = false;
  std::optional<RopeParams> rope;
  /// Group sizes of the KV heads of keys and of values; empty: those of k and v.
  std::vector<int> k_dims;
  std::vector<int> v_dims;
  /// Keys in a random order with random metrics, values in a random rotation.
  bool bases = false;
  /// Then: RoPE pairs stay side by side; see random_basis.
  int partner = 0;

  std::string name() const {
    return k.name() + "/" + v.name() + " kv" + std::to_string(n_kv_heads) + "x" +
           std::to_string(heads_per_kv) + " d" + std::to_string(head_dim_k) + "/" +
           std::to_string(head_dim_v) + " q" + std::to_string(n_queries) + " t" +
           std::to_string(n_cells) + (sum_every > 0 ? " sums" + std::to_string(sum_every) : "") +
           (softcap > 0 ? " capped" : "") + (sink_logits ? " sinks" : "") +
           (byte_tables ? " bytes" : "") + (bases ? " bases" : "");
  }
};

class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, std::uint64_t seed)
      : shape_(shape),
        rng_(seed),
        queries_(static_cast<std::size_t>(shape.n_queries) * n_heads() * shape.head_dim_k),
        out_(static_cast<std::size_t>(shape.n_queries) * n_heads() * shape.head_dim_v),
        mask_(static_cast<std::size_t>(shape.n_queries) * shape.n_cells),
        positions_(shape.n_cells) {
    for (std::size_t i = 0; i < queries_.size(); i++) {
      queries_[i] = static_cast<float>(rng_.normal());
    }
    fill_mask();
    for (std::size_t t = 0; t < shape.n_cells; t++) {
      positions_[t] = shape.scrambled ? static_cast<std::int32_t>(rng_.below(5000))
                                      : static_cast<std::int32_t>(t);
    }
    if (shape.rope) {
      rope_.emplace(*shape.rope);
      rope_->reserve(static_cast<std::int32_t>(shape.scrambled ? 5000 : shape.n_cells));
    }
    make_side(shape.k, shape.k_dims, shape.head_dim_k, k_codebook_, k_data_);
    make_side(shape.v, shape.v_dims, shape.head_dim_v, v_codebook_, v_data_);
    if (shape.exact_rows) {
      make_exact();
    }
    sink_logits_ = ExactBuffer<float>(static_cast<std::size_t>(n_heads()));
    for (float& logit : sink_logits_) {
      logit = static_cast<float>(rng_.normal()) * 2 + 3;
    }
  }

  int n_heads() const { return shape_.n_kv_heads * shape_.heads_per_kv; }

  const AttentionShape& shape() const { return shape_; }

  ExactBuffer<float>& queries() { return queries_; }

  ExactBuffer<std::uint16_t>& mask() { return mask_; }

  ExactBuffer<std::int32_t>& positions() { return positions_; }

  ExactBuffer<std::uint8_t>& k_data() { return k_data_; }

  ExactBuffer<std::uint8_t>& v_data() { return v_data_; }

  /// The output [n_queries, n_heads, head_dim_v] of the last run.
  ExactBuffer<float>& out() { return out_; }

  /// The call, layout [query][head][channel] for queries and output.
  AttentionCall call() {
    make_codecs();
    AttentionCall call;
    call.n_heads = n_heads();
    call.n_kv_heads = shape_.n_kv_heads;
    call.head_dim_k = shape_.head_dim_k;
    call.head_dim_v = shape_.head_dim_v;
    call.n_queries = shape_.n_queries;
    call.n_cells = shape_.n_cells;
    call.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim_k));
    call.softcap = shape_.softcap;
    call.sink_logits = shape_.sink_logits ? sink_logits_.data() : nullptr;
    call.k = side(shape_.head_dim_k, k_codec_, k_data_);
    call.v = side(shape_.head_dim_v, v_codec_, v_data_);
    call.positions = positions_.data();
    call.rope = rope_ ? &*rope_ : nullptr;
    call.exact = shape_.exact_rows ? &exact_ : nullptr;
    call.key_sums = key_sums_ ? &*key_sums_ : nullptr;
    call.queries = reinterpret_cast<const std::uint8_t*>(queries_.data());
    call.query_head_bytes = static_cast<std::size_t>(shape_.head_dim_k) * sizeof(float);
    call.query_bytes = call.query_head_bytes * n_heads();
    call.mask = shape_.with_mask ? reinterpret_cast<const std::uint8_t*>(mask_.data()) : nullptr;
    call.mask_bytes = shape_.n_cells * sizeof(std::uint16_t);
    call.out = reinterpret_cast<std::uint8_t*>(out_.data());
    call.out_head_bytes = static_cast<std::size_t>(shape_.head_dim_v) * sizeof(float);
    call.out_bytes = call.out_head_bytes * n_heads();
    return call;
  }

 private:
  // Causal, or a random tenth of the cells hidden and small biases elsewhere.
  void fill_mask() {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for (std::size_t i = 0; i < mask_.size(); i++) {
      const std::size_t query = i / shape_.n_cells;
      const std::size_t cell = i % shape_.n_cells;
      float value = 0.0F;
      if (shape_.causal) {
        const bool seen = cell + shape_.n_queries <= shape_.n_cells + query;
        value = seen ? 0.0F : kHidden;
      } else {
        value = rng_.uniform() < 0.1 ? kHidden : static_cast<float>(-rng_.uniform());
      }
      mask_[i] = float_to_half(value);
    }
  }

  void make_side(CodecSpec spec, const std::vector<int>& dims, int head_dim,
                 std::optional<TensorCodebook>& codebook, ExactBuffer<std::uint8_t>& data) {
    const std::size_t n_channels = static_cast<std::size_t>(shape_.n_kv_heads) * head_dim;
    if (spec.exact()) {
      data = ExactBuffer<std::uint8_t>(shape_.n_cells * n_channels * 2);
      for (std::size_t i = 0; i < data.size(); i += 2) {
        const std::uint16_t half = float_to_half(static_cast<float>(rng_.normal()));
        std::memcpy(data.data() + i, &half, 2);
      }
      return;
    }
    const TensorSpec tensor = dims.empty() ? TensorSpec(spec, shape_.n_kv_heads, head_dim)
                                           : TensorSpec(spec.code_bits, dims, head_dim);
    std::vector<float> centroids;
    for (int kv_head = 0; kv_head < shape_.n_kv_heads; kv_head++) {
      for (std::size_t i = 0; i < tensor.n_centroid_values(kv_head); i++) {
        centroids.push_back(static_cast<float>(rng_.normal()));
      }
    }
    codebook.emplace(
        TensorCodebook::create(tensor, centroids, make_basis(tensor, &data == &k_data_)).value());
    // Any bytes are legal codes.
    const CodeLayout layout(codebook->spec());
    data = ExactBuffer<std::uint8_t>(layout.tensor_bytes(shape_.n_cells));
    for (std::size_t i = 0; i < data.size(); i++) {
      data[i] = static_cast<std::uint8_t>(rng_.below(256));
    }
  }

  TensorBasis make_basis(const TensorSpec& spec, bool is_key) {
    return shape_.bases ? testing::random_basis(spec, is_key ? KvKind::kKey : KvKind::kValue, 3,
                                                shape_.partner)
                        : TensorBasis();
  }

  // With tables however coarse: random centroids are far apart.
  void make_codecs() {
    const auto make = [&](const std::optional<TensorCodebook>& codebook, KvKind kind,
                          std::optional<TensorCodec>& codec) {
      const kernels::KernelTable& kernel = kernels::active();
      codec.reset();
      if (!codebook) {
        return;
      }
      if (shape_.byte_tables && ByteTables::usable(codebook->spec().code_bits(), kernel)) {
        const RopeParams* rope = shape_.rope ? &*shape_.rope : nullptr;
        codec.emplace(*codebook, ByteTables::of(*codebook, kind, rope, kernel), kernel);
      } else {
        codec.emplace(*codebook);
      }
    };
    make(k_codebook_, KvKind::kKey, k_codec_);
    make(v_codebook_, KvKind::kValue, v_codec_);
    if (shape_.sum_every > 0) {
      make_key_sums();
    }
  }

  // Random matrices, the same at every level; what they add is as large as the values.
  void make_key_sums() {
    std::vector<int> groups;
    for (int group = shape_.sum_every - 1; group < k_codebook_->n_codes();
         group += shape_.sum_every) {
      groups.push_back(group);
    }
    const std::size_t n_sums = groups.size() * static_cast<std::size_t>(shape_.k.group_dim);
    Rng rng(17);
    std::vector<float> matrices(n_sums * shape_.head_dim_v * shape_.n_kv_heads);
    for (float& element : matrices) {
      element = static_cast<float>(rng.normal() / std::sqrt(static_cast<double>(n_sums)));
    }
    key_sums_.emplace(
        KeySums::create(*k_codebook_, groups, shape_.head_dim_v, matrices, kernels::active())
            .value());
  }

  // Rows in pool and batch, alternating; as many bytes as there are rows.
  void make_exact() {
    exact_row_of_cell_ = ExactBuffer<std::int32_t>(shape_.n_cells);
    std::int32_t n_rows = 0;
    for (std::int32_t& row : exact_row_of_cell_) {
      row = rng_.uniform() < 0.4 ? n_rows++ : -1;
    }
    exact_.n_pool = n_rows / 2;
    exact_sinks_ = ExactBuffer<std::uint8_t>(static_cast<std::size_t>(n_rows));
    for (std::uint8_t& sink : exact_sinks_) {
      sink = rng_.uniform() < 0.1 ? 1 : 0;
    }
    query_positions_ = ExactBuffer<std::int32_t>(static_cast<std::size_t>(shape_.n_queries));
    for (std::int32_t& position : query_positions_) {
      position = positions_[rng_.below(shape_.n_cells)];
    }
    exact_.rows = exact_row_of_cell_.data();
    exact_.sinks = exact_sinks_.data();
    exact_.query_positions = query_positions_.data();
    exact_.window = shape_.window;
    exact_.k = make_exact_side(shape_.head_dim_k, n_rows, 0);
    exact_.v = make_exact_side(shape_.head_dim_v, n_rows, 2);
  }

  ExactRows::Side make_exact_side(int head_dim, std::int32_t n_rows, int which) {
    const ExactRowLayout layout{shape_.n_kv_heads * head_dim};
    for (int i = which; i < which + 2; i++) {
      const auto n = static_cast<std::size_t>(i == which ? exact_.n_pool : n_rows - exact_.n_pool);
      exact_data_[i] = ExactBuffer<std::uint8_t>(n * layout.row_bytes());
      std::vector<float> row(static_cast<std::size_t>(layout.n_channels));
      const std::vector<float> zeros(row.size());
      for (std::size_t r = 0; r < n; r++) {
        for (float& value : row) {
          value = static_cast<float>(rng_.normal()) / 2;
        }
        write_exact_row(layout, row.data(), zeros.data(),
                        exact_data_[i].data() + r * layout.row_bytes());
      }
    }
    return {exact_data_[which].data(), exact_data_[which + 1].data()};
  }

  CacheSide side(int head_dim, const std::optional<TensorCodec>& codec,
                 const ExactBuffer<std::uint8_t>& data) const {
    CacheSide side;
    side.codec = codec ? &*codec : nullptr;
    side.data = data.data();
    side.head_bytes = static_cast<std::size_t>(head_dim) * 2;
    side.row_bytes = side.head_bytes * shape_.n_kv_heads;
    return side;
  }

  AttentionShape shape_;
  Rng rng_;
  ExactBuffer<float> queries_;
  ExactBuffer<float> out_;
  ExactBuffer<std::uint16_t> mask_;
  ExactBuffer<std::int32_t> positions_;
  std::optional<RopeTable> rope_;
  std::optional<TensorCodebook> k_codebook_;
  std::optional<TensorCodebook> v_codebook_;
  std::optional<TensorCodec> k_codec_;
  std::optional<TensorCodec> v_codec_;
  std::optional<KeySums> key_sums_;
  ExactBuffer<std::uint8_t> k_data_;
  ExactBuffer<std::uint8_t> v_data_;
  ExactRows exact_;
  ExactBuffer<std::int32_t> exact_row_of_cell_;
  ExactBuffer<std::uint8_t> exact_sinks_;
  ExactBuffer<std::int32_t> query_positions_;
  ExactBuffer<float> sink_logits_;
  ExactBuffer<std::uint8_t> exact_data_[4];  // keys: pool, batch; values: pool, batch
};

using Floats = std::vector<float>;

/// The output of `call`, a call of `test`, which ends up in test.out().
inline Floats run_attention(AttentionCase& test, const AttentionCall& call, int n_threads = 1) {
  std::fill(test.out().begin(), test.out().end(), 99.0F);
  ThreadParallelFor parallel(n_threads);
  AttentionWorkspace workspace;
  const Status status = attend(call, parallel, workspace);
  EXPECT_TRUE(status.ok()) << status.message();
  return {test.out().begin(), test.out().end()};
}

/// The call for queries [first, first + n), writing to their places.
inline AttentionCall part_of(AttentionCall call, int first, int n) {
  call.queries += first * call.query_bytes;
  call.mask += first * call.mask_bytes;
  call.out += first * call.out_bytes;
  call.n_queries = n;
  return call;
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline RopeParams plain_rope(int n_dims, RopeMode mode) {
  RopeParams params;
  params.n_dims = n_dims;
  params.mode = mode;
  return params;
}

}  // namespace cqkv
