// Rotary position embedding as ggml computes it: the parameters of a ROPE node,
// its angles, the rotation of rows and its inverse. Keys are coded before this
// rotation, so rows that arrive rotated are rotated back here, and attention
// rotates decoded blocks again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cqkv/status.h"

namespace cqkv {

/// How channels form pairs: kNormal (2i, 2i+1), kNeox (i, i + n_dims/2).
enum class RopeMode { kNormal = 0, kNeox = 2 };

/// As in ggml_rope_ext; channels from n_dims on are not rotated.
struct RopeParams {
  int n_dims = 0;
  RopeMode mode = RopeMode::kNormal;
  int n_ctx_orig = 0;
  float freq_base = 10000.0F;
  float freq_scale = 1.0F;
  float ext_factor = 0.0F;
  float attn_factor = 1.0F;
  float beta_fast = 32.0F;
  float beta_slow = 1.0F;
  std::vector<float> freq_factors;  ///< Empty, or n_dims / 2 divisors of the angles.

  bool operator==(const RopeParams&) const = default;

  /// Legal values: n_dims even and at most head_dim, factors of the right number, all finite.
  Status check(int head_dim) const;
};

/// A rotation in sections (M-RoPE): a token has four positions, and each pair of channels is
/// rotated by one of them. Of a token of text the first three are its position and the last is 0:
/// it is rotated as in RopeMode::kNeox, but for pairs that take the last, which stand still.
struct RopeSections {
  int sizes[4] = {};         ///< Pairs of each position.
  bool interleaved = false;  ///< The first three take turns.

  /// Which position rotates a pair, as in ggml.
  int position_of(int pair) const;

  /// Factors with which NeoX does the same to text; they may have been empty.
  void stop_fourth(int n_pairs, std::vector<float>& freq_factors) const;
};

/// The angles of a model are linear in the position: angle(p, i) = p * frequency[i],
/// and the rotation is scaled by one magnitude (YaRN; 1 elsewhere).
struct RopeFrequencies {
  std::vector<double> frequency;  ///< [n_dims / 2], radians a position.
  float magnitude = 1.0F;

  static RopeFrequencies of(const RopeParams& params);

  /// The first pairs, a multiple of kPairLanes or all, such that the later ones turn by at most
  /// kLargestStandstill over `n_positions`.
  int n_turning(int n_positions) const;

  static constexpr double kLargestStandstill = 0.011;  ///< Radians.
};

/// cosines and sines (times magnitude) of `position`, computed as ggml does, in
/// f32 with iterated multiplication: what a row from ggml was rotated with.
void rope_row_ggml(const RopeParams& params, std::int32_t position, float* cosines, float* sines);

/// Rotates one row of n_heads heads back, in place: the inverse of ggml's rotation
/// by (cosines, sines), magnitude divided out.
void rope_inverse(const RopeParams& params, const float* cosines, const float* sines, int n_heads,
                  int head_dim, float* row);

/// Rotates one row forward, in place.
void rope_forward(const RopeParams& params, const float* cosines, const float* sines, int n_heads,
                  int head_dim, float* row);

/// The transpose of rope_forward, in place: of the gradient by a rotated row makes that by the row.
/// It multiplies by the magnitude, where the inverse divides by it.
void rope_transposed(const RopeParams& params, const float* cosines, const float* sines,
                     int n_heads, int head_dim, float* row);

/// Angles of whole blocks: position p = 64 h + l splits into a table over l and one
/// over h, so any 64 positions cost one complex product a pair. The angles of a
/// position depend neither on its neighbours nor on what is reserved.
///
/// Const after construction except for growth of the h table by `reserve`.
class RopeTable {
 public:
  explicit RopeTable(const RopeParams& params);

  const RopeParams& params() const { return params_; }

  /// Makes positions in [0, n_positions) available; may allocate. Negative
  /// positions and those beyond are computed directly, slowly.
  void reserve(std::int32_t n_positions);

  /// cosines[i * 64 + t], sines[i * 64 + t] for pair i < n_dims / 2 and the 64
  /// positions given (magnitude included). Numerics: tables are rounded from f64,
  /// the product is f32: the error is at most 4 eps a pair.
  void block(const std::int32_t* positions, float* cosines, float* sines) const;

  /// cosines[i] and sines[i] of one position, magnitude included, from the same tables.
  void row(std::int64_t position, float* cosines, float* sines) const;

  /// cosines[i * 64 + t] of the angles of position t - kBlockCentre, then as many sines, without
  /// the magnitude: what a block of consecutive keys is rotated by when the queries are rotated
  /// back by the position of its centre.
  const float* centred() const { return centred_.data(); }

  float magnitude() const { return frequencies_.magnitude; }

  static constexpr int kBlockCentre = 32;

 private:
  // One token of a block whose high angle is not in the table, rounded as the table is.
  void outside_table(std::int64_t h, const float* low, float* cosines, float* sines) const;

  RopeParams params_;
  RopeFrequencies frequencies_;
  std::size_t n_padded_;        // n_dims / 2 rounded up to kPairLanes
  std::vector<float> low_run_;  // [2, n_dims / 2, 64]: low_ by channels
  std::vector<float> low_;      // [64, 2 (cos, sin), n_padded]: angles of l, with the magnitude
  std::vector<float> high_;     // [n_high, 2, n_padded]: angles of 64 h
  std::vector<float> centred_;  // [2, n_dims / 2, 64]
};

}  // namespace cqkv
