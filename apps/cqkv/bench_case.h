// The problems of the operator benchmark: what shape an attention has, random queries and
// masks for it, and random codes with their codebooks. Who computes it is in
// bench_attend.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cqkv/codebook.h"

#include "codec/code_blocks.h"
#include "codec/key_sums.h"
#include "rope/rope.h"

namespace cqkv::app {

/// One attention of n_seq sequences of n_tokens tokens, n_queries queries each, the last
/// tokens of their sequence.
struct BenchShape {
  int head_dim = 128;
  int gqa = 4;  ///< Query heads of one KV head.
  int n_kv_heads = 2;
  int n_tokens = 4096;
  int n_seq = 1;
  int n_queries = 1;
  /// All sequences in one stream of cells, taking turns, told apart by the mask; else each
  /// has a stream of its own.
  bool unified = false;
  /// Of the first token of a sequence: what is no multiple of 64 puts our blocks out of place.
  int first_position = 0;
  /// Of the rotation; Llama 3's. Pairs of keys that hardly turn within a block cost less.
  float rope_base = 500000.0F;
  RopeMode rope_mode = RopeMode::kNeox;
  /// Layers of one run, each with its own codes.
  int n_layers = 1;

  int n_heads() const { return gqa * n_kv_heads; }

  int n_channels() const { return head_dim * n_kv_heads; }

  int n_streams() const { return unified ? 1 : n_seq; }

  /// Of one stream.
  int stream_cells() const { return unified ? n_tokens * n_seq : n_tokens; }

  /// Of one stream, sequence by sequence.
  int stream_queries() const { return unified ? n_queries * n_seq : n_queries; }

  /// Floats of the queries, and of the output.
  std::size_t query_floats() const {
    return static_cast<std::size_t>(n_seq) * n_queries * n_heads() * head_dim;
  }

  /// (layer, query, token, query head) with the token visible: a query sees no later tokens.
  double n_scores() const;

  /// kInvalidArgument for a shape that nobody can compute.
  Status check() const;
};

/// What all implementations are given. Streams are alike in positions and mask.
struct BenchInputs {
  explicit BenchInputs(const BenchShape& shape);

  std::vector<float> queries;           ///< [stream, query, head, head_dim]
  std::vector<std::uint16_t> mask;      ///< f16 [stream, query, cell]: 0 or -inf.
  std::vector<std::int32_t> positions;  ///< [cell]
};

/// Random codes of keys (before their rotation) and values, with random codebooks.
class BenchCodes {
 public:
  /// @param n_key_heads  Values are predicted besides, by random matrices, from the keys of the
  ///   first so many KV heads; 0: they are not.
  /// kInvalidArgument if heads cannot be coded so.
  static Result<BenchCodes> random(const BenchShape& shape, CodecSpec spec, int n_key_heads);

  /// Random codes of these codebooks, of as many and as large heads as the shape's.
  static BenchCodes of(const BenchShape& shape, TensorCodebook keys, TensorCodebook values);

  const TensorCodebook& codebook(KvKind kind) const { return side(kind).codebook; }

  const std::uint8_t* stream(KvKind kind, int stream) const {
    return side(kind).codes.data() + stream * side(kind).stream_bytes;
  }

  /// Keys and values.
  std::size_t bytes() const { return keys_.codes.size() + values_.codes.size(); }

  /// Null if values are what their codes say.
  const KeySums* key_sums() const { return key_sums_ ? &*key_sums_ : nullptr; }

  int n_key_heads() const {
    return key_sums_ ? key_sums_->n_channels() / keys_.layout.spec.head_dim() : 0;
  }

  /// One cell [n_channels], keys not rotated, values as predicted.
  void decode(KvKind kind, int stream, int cell, float* row) const;

 private:
  struct Side {
    TensorCodebook codebook;
    CodeLayout layout;
    std::size_t stream_bytes = 0;
    std::vector<std::uint8_t> codes;  // [stream, stream_bytes]

    Side(const BenchShape& shape, TensorCodebook codebook, std::uint64_t stream);
  };

  BenchCodes(Side keys, Side values);

  Status predict(int n_key_heads);
  void decode_codes(KvKind kind, int stream, int cell, float* row) const;

  const Side& side(KvKind kind) const { return kind == KvKind::kKey ? keys_ : values_; }

  Side keys_;
  Side values_;
  std::optional<KeySums> key_sums_;
};

/// Normally distributed; equal streams are equal numbers.
std::vector<float> random_floats(std::size_t n, std::uint64_t stream);

/// The codecs of a --codec flag. kInvalidArgument if one is none, exact, or does not fit heads.
Result<std::vector<CodecSpec>> parse_codecs(const std::vector<std::string>& names, int head_dim);

/// Random centroids; equal streams are equal codebooks.
Result<TensorCodebook> random_codebook(CodecSpec spec, int n_kv_heads, int head_dim,
                                       std::uint64_t stream);

/// A codebook of a file as the benchmark can use it: all layers coded, with heads alike.
Status check_benchable(const Codebook& codebook, const std::string& path);

/// The rotation that its keys were made for: kNormal if channels 2 i and 2 i + 1 stand side by side
/// in every head's order, else kNeox.
RopeMode rope_mode_of(const Codebook& codebook);

/// The rotation of keys, as most models have it.
RopeParams bench_rope(const BenchShape& shape);

}  // namespace cqkv::app
