// Codebooks in memory: the centroids of one cache tensor (TensorCodebook) and
// those of a whole model with their provenance (Codebook). Encoding and decoding
// rows is here; learning is in src/codebook/kmeans.h, the file format in
// src/codebook_file, attention on codes in src/attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cqkv/basis.h"
#include "cqkv/status.h"
#include "cqkv/types.h"

namespace cqkv {

/// The centroids of the keys or the values of one layer.
///
/// Axes, slowest first: [kv_head, group, centroid, group_dim]; each KV head has groups of a size of
/// its own, so only [kv_head] is regular: head_dim * 2^code_bits values a head, and head_dim, its
/// mean, of one without codes. Every group has its own codebook (paper, section 3.2). Centroids are
/// 16-bit floats, to which `create` rounds, so a codebook read back from its file is bit-equal.
/// Const after construction; all methods may run at once.
class TensorCodebook {
 public:
  /// @param centroids  [kv_head, group, centroid, group_dim]; of a head without codes [head_dim].
  /// @return kInvalidArgument if the shape is illegal, the count disagrees or a
  ///   centroid is not finite as a 16-bit float.
  static Result<TensorCodebook> create(CodecSpec spec, int n_kv_heads, int head_dim,
                                       std::span<const float> centroids);

  /// The same with groups of a size of its own for each KV head, of the components of a basis.
  /// @param basis  Made for the same spec. Centroids are components.
  static Result<TensorCodebook> create(const TensorSpec& spec, std::span<const float> centroids,
                                       TensorBasis basis = {});

  const TensorSpec& spec() const { return spec_; }

  const TensorBasis& basis() const { return basis_; }

  int n_kv_heads() const { return spec_.n_kv_heads(); }

  int head_dim() const { return spec_.head_dim(); }

  /// Codes of one row: the groups of all heads that have codes.
  int n_codes() const { return spec_.n_codes(); }

  /// Channels of one row.
  int n_channels() const { return spec_.n_channels(); }

  /// All centroids as 16-bit floats (IEEE binary16), as `create` takes them.
  std::span<const std::uint16_t> centroids() const { return centroids_; }

  /// The codebook of one group, [centroid, group_dim]; of a head without codes one centroid.
  const std::uint16_t* group(int kv_head, int group) const {
    return centroids_.data() + first_[static_cast<std::size_t>(kv_head)] +
           static_cast<std::size_t>(group) * spec_.group_dim(kv_head) * spec_.n_centroids(kv_head);
  }

  /// The same as 32-bit floats. May throw std::bad_alloc.
  std::vector<float> group_floats(int kv_head, int group) const;

  /// Encodes rows to the nearest centroid:
  ///
  ///     codes[r][g] = the lowest i that minimises |row[r] of group g - centroid[g][i]|^2
  ///
  /// with groups of components and the distance of the basis: without one, of channels and plain.
  ///
  /// @param rows    n_rows rows of n_channels() f32, `row_stride` floats apart; finite.
  /// @param codes   [n_rows, n_codes()] u16, overwritten.
  /// Numerics: squared distances are summed in f32, channel by channel; a row is
  ///   encoded the same whatever rows stand beside it.
  /// Cost: n_channels * 2^code_bits multiply-adds a row, whatever the group size. With a basis
  /// more, see TensorBasis; and a std::bad_alloc may be thrown.
  void encode(const float* rows, std::size_t n_rows, std::size_t row_stride,
              std::uint16_t* codes) const;

  /// The same of rows of components (basis().to_components) and of n >= 0 groups from `first` on,
  /// counted over all heads, first + n <= n_codes(): codes of other groups are not touched, so that
  /// threads can share the groups of one row.
  void encode_groups(const float* components, std::size_t n_rows, std::size_t row_stride, int first,
                     int n, std::uint16_t* codes) const;

  /// rows[r][channel] = centroid[g][codes[r][g]]; codes must be < n_centroids.
  /// With a basis the components so found are turned back into channels. May throw std::bad_alloc
  /// then.
  void decode(const std::uint16_t* codes, std::size_t n_rows, float* rows,
              std::size_t row_stride) const;

  /// The same without turning back: rows of components.
  void decode_components(const std::uint16_t* codes, std::size_t n_rows, float* rows,
                         std::size_t row_stride) const;

 private:
  TensorCodebook() = default;

  Status set_centroids(std::span<const float> centroids);
  void set_transposed(const std::vector<std::uint16_t>& centroids);
  void encode_group(int kv_head, int group, const float* in, std::size_t n_rows,
                    std::size_t row_stride, std::uint16_t* codes) const;

  std::size_t first_channel(int kv_head, int group) const {
    return static_cast<std::size_t>(kv_head) * head_dim() +
           static_cast<std::size_t>(group) * spec_.group_dim(kv_head);
  }

  TensorSpec spec_;
  TensorBasis basis_;
  std::vector<std::uint16_t> centroids_;
  std::vector<std::size_t> first_;             // [kv_head], in centroids_
  std::vector<std::size_t> first_transposed_;  // [kv_head]
  // [kv_head, group, group_dim, padded centroids] of heads with codes, in the metric
  std::vector<std::uint16_t> transposed_;
};

/// What coding loses on calibration text that was held out, so not learned from: shares of the
/// weighted variance, mean over layers (relative_coding_error in src/codebook/learn.h).
struct HeldOutLoss {
  std::uint32_t n_tokens = 0;  ///< Held out; 0: not measured, and the shares say nothing.
  float keys = 0;              ///< 0 if all are exact.
  float values = 0;
};

/// Where a codebook comes from. Strings may be empty.
struct CodebookOrigin {
  std::string name;          ///< For people: "SmolLM2-135M-Instruct cq-8c8b fisher".
  std::string architecture;  ///< The model's general.architecture: "llama".
  std::string model_name;    ///< The model's general.name.
  std::string license;
  std::string weighting;              ///< "uniform" or "fisher".
  std::string tool_version;           ///< The cqkv that made it.
  std::vector<std::string> datasets;  ///< File names of the calibration texts.
  std::uint32_t n_tokens = 0;         ///< Held-out ones included.
  std::uint32_t ctx_size = 0;
  std::uint64_t seed = 0;
  HeldOutLoss held_out;
  /// One hash a layer of blk.<il>.attn_norm.weight (see fingerprint.h); 0 = not known.
  std::vector<std::uint64_t> model_fingerprint;
};

/// One layer: absent codebook means that tensor is kept exact.
struct LayerCodebook {
  std::vector<TensorCodebook> k;  ///< Empty (exact) or one.
  std::vector<TensorCodebook> v;

  const TensorCodebook* get(KvKind kind) const {
    const auto& side = kind == KvKind::kKey ? k : v;
    return side.empty() ? nullptr : &side.front();
  }
};

/// The codebook of a model.
struct Codebook {
  CodebookOrigin origin;
  std::uint32_t window = 0;  ///< Exact recent tokens (default for the device).
  std::uint32_t sinks = 0;   ///< Exact first tokens.
  std::vector<LayerCodebook> layers;

  /// A 64-bit hash of all specs, shapes and centroid values: two codebooks with
  /// the same identity code alike. Names and provenance do not enter.
  /// May throw std::bad_alloc.
  std::uint64_t identity() const;

  /// Bits of codes per channel, averaged over the channels of coded and exact
  /// tensors alike (exact counts 16; of a layer without any codebook nothing is known).
  double bits_per_channel() const;

  /// Bytes of all centroids as 16-bit floats, and of the bases.
  std::size_t centroid_bytes() const;
};

}  // namespace cqkv
