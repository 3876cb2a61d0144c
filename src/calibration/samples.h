// Collecting the rows that a capture or a gradient run delivers, with their weights,
// until the codebooks are learned from them. Some tokens are held out: a codebook never
// learns from them, so that they can show what it is worth.
#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "cqkv/status.h"
#include "cqkv/types.h"

#include "calibration/bases.h"
#include "codebook/learn.h"
#include "model_pass/kv_rows.h"

namespace cqkv {

/// Tokens [first, end) of a sequence.
struct TokenRange {
  std::size_t first = 0;
  std::size_t end = 0;

  std::size_t size() const { return end - first; }
};

/// The tokens of a sequence that are held out: one sixteenth of it in one stretch, in the first
/// sequence the ninth, then the tenth and so on, so that every file has its share and, over the
/// sequences, all positions. The first sixteenth never is: it begins with what every sequence
/// begins with, whose keys are large and would be known from the others.
TokenRange held_out_range(std::size_t sequence, std::size_t n_tokens);

/// Rows of the keys or values of one layer.
struct SampleRows {
  std::size_t n_rows = 0;
  std::vector<float> rows;  ///< [n_rows, n_channels].
  /// For each group_dim the weights [n_rows, n_channels / group_dim]; empty: all 1.
  std::map<int, std::vector<float>> weights;
  std::vector<float> gradients;  ///< [n_rows, n_channels]; empty: not kept.
};

/// What learn.h learns from these rows for a codec, with the weights that they have for its groups.
LearnInput learn_input(const KvShape& shape, const SampleRows& rows, const CodecSpec& spec);

/// All rows of the keys or values of one layer.
struct TensorSamples {
  KvShape shape;
  SampleRows learned;       ///< To learn from.
  SampleRows held_out;      ///< Not to learn from.
  GradientMoments moments;  ///< Of the rows to learn from; only for bases.
};

/// A KvSink that keeps rows and, where gradients come along, one weight per group of
/// channels and token, the group's diagonal Fisher information (paper, equation 6):
///
///     weight[t][g] = sum over channels c of group g of gradient[t][c]^2
///
/// for every group_dim that is asked for. The gradients themselves are kept of held-out rows at
/// most. Tensors of a side without codecs are skipped.
class SampleCollector {
 public:
  using Key = std::pair<int, KvKind>;  // layer, kind

  /// @param key_specs, value_specs  What will be learned from the rows, none exact.
  SampleCollector(std::vector<CodecSpec> key_specs, std::vector<CodecSpec> value_specs)
      : key_specs_(std::move(key_specs)), value_specs_(std::move(value_specs)) {}

  /// Memory for that many rows of each tensor is then taken once.
  void expect(std::size_t n_learned, std::size_t n_held_out);

  /// For rates by head: held-out rows keep their gradients, and codecs whose groups do not divide a
  /// layer's heads are passed over there.
  void collect_for_rates() { for_rates_ = true; }

  /// For bases: gradients' moments, and instead of a weight a group one a head, under its size.
  void collect_for_bases() { for_bases_ = true; }

  /// The rows that follow are those of this sequence, of n_tokens.
  void begin_sequence(std::size_t sequence, std::size_t n_tokens) {
    held_out_ = held_out_range(sequence, n_tokens);
  }

  /// @return kInvalidArgument if groups do not divide the heads (but for rates), or the shape of a
  ///   layer changed; kCorrupt if a row is not finite.
  Status add(const KvRows& rows);

  std::map<Key, TensorSamples>& tensors() { return tensors_; }

 private:
  const std::vector<CodecSpec>& specs(KvKind kind) const {
    return kind == KvKind::kKey ? key_specs_ : value_specs_;
  }

  std::vector<int> weighted_dims(const KvRows& rows) const;
  Status begin_tensor(const KvRows& rows);
  void reserve(const KvRows& rows, std::size_t n_rows, SampleRows& samples) const;
  Status append(const KvRows& rows, TokenRange tokens, SampleRows& samples) const;
  Status append_learned(const KvRows& rows, TokenRange tokens, TensorSamples& samples) const;

  std::vector<CodecSpec> key_specs_;
  std::vector<CodecSpec> value_specs_;
  std::size_t n_learned_ = 0;
  std::size_t n_held_out_ = 0;
  TokenRange held_out_;
  bool for_rates_ = false;
  bool for_bases_ = false;
  std::map<Key, TensorSamples> tensors_;
};

}  // namespace cqkv
