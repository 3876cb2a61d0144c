// Rotary position embedding: ggml's angles, their linear form in double, and the
// tables that give the angles of whole blocks; see rope.h. The arithmetic of
// ggml_rope_cache_init, rope_yarn and ggml_rope_yarn_corr_dims is followed step by
// step, f32 where ggml has f32, because rows must be rotated back by what they
// were rotated with.
#include "rope/rope.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/round_up.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

using kernels::kBlockCells;

constexpr float kPi = 3.14159265358979323846F;

float theta_scale(const RopeParams& params) {
  return std::pow(params.freq_base, -2.0F / static_cast<float>(params.n_dims));
}

// The pair at which a wave makes n_rotations turns within the original context.
float correction_dim(const RopeParams& params, float n_rotations) {
  const float turns = static_cast<float>(params.n_ctx_orig) / (n_rotations * 2 * kPi);
  return static_cast<float>(params.n_dims) * std::log(turns) / (2 * std::log(params.freq_base));
}

// YaRN: how far pair i is extrapolated (1) rather than interpolated (0).
class YarnRamp {
 public:
  explicit YarnRamp(const RopeParams& params) : ext_factor_(params.ext_factor) {
    if (ext_factor_ != 0.0F) {
      low_ = std::max(0.0F, std::floor(correction_dim(params, params.beta_fast)));
      high_ = std::min(static_cast<float>(params.n_dims - 1),
                       std::ceil(correction_dim(params, params.beta_slow)));
    }
  }

  float mix(int pair) const {
    if (ext_factor_ == 0.0F) {
      return 0.0F;
    }
    const float y = (static_cast<float>(pair) - low_) / std::max(0.001F, high_ - low_);
    return (1 - std::min(1.0F, std::max(0.0F, y))) * ext_factor_;
  }

 private:
  float ext_factor_;
  float low_ = 0.0F;
  float high_ = 0.0F;
};

float magnitude_of(const RopeParams& params) {
  float magnitude = params.attn_factor;
  if (params.ext_factor != 0.0F) {
    magnitude *= 1.0F + 0.1F * std::log(1.0F / params.freq_scale);
  }
  return magnitude;
}

// Where pair i of a head lies: its first channel and the distance to the second.
struct PairPlace {
  int step;
  int partner;

  explicit PairPlace(const RopeParams& params)
      : step(params.mode == RopeMode::kNormal ? 2 : 1),
        partner(params.mode == RopeMode::kNormal ? 1 : params.n_dims / 2) {}
};

std::size_t padded_pairs(const RopeParams& params) {
  const std::size_t lanes = kernels::kPairLanes;
  return (static_cast<std::size_t>(params.n_dims) / 2 + lanes - 1) / lanes * lanes;
}

// p = 64 h + l with 0 <= l < 64, also for p < 0.
std::int64_t high_of(std::int64_t position) {
  return (position >= 0 ? position : position - (kBlockCells - 1)) / kBlockCells;
}

// Positions 64 h, 64 h + 1, ...: what attention asks for.
bool is_whole_block(const std::int32_t* positions) {
  for (int t = 0; t < kBlockCells; t++) {
    if (positions[t] != positions[0] + t) {
      return false;
    }
  }
  return positions[0] % kBlockCells == 0;
}

// One row of a table: cosines, then sines, of frequency * position.
void table_row(const RopeFrequencies& frequencies, double position, double magnitude,
               std::size_t n_padded, float* row) {
  for (std::size_t i = 0; i < frequencies.frequency.size(); i++) {
    const double angle = frequencies.frequency[i] * position;
    row[i] = static_cast<float>(std::cos(angle) * magnitude);
    row[n_padded + i] = static_cast<float>(std::sin(angle) * magnitude);
  }
}

// Turns the pairs of one row by the angles (sign 1) or back (sign -1), and multiplies by `factor`.
void turn(const RopeParams& params, const float* cosines, const float* sines, float sign,
          float factor, int n_heads, int head_dim, float* row) {
  const PairPlace place(params);
  for (int head = 0; head < n_heads; head++) {
    float* channels = row + static_cast<std::size_t>(head) * head_dim;
    for (int i = 0; i < params.n_dims / 2; i++) {
      float& x = channels[i * place.step];
      float& y = channels[i * place.step + place.partner];
      const float old_x = x;
      const float old_y = y;
      const float sine = sign * sines[i];
      x = (old_x * cosines[i] - old_y * sine) * factor;
      y = (old_x * sine + old_y * cosines[i]) * factor;
    }
  }
}

}  // namespace

Status RopeParams::check(int head_dim) const {
  if (n_dims <= 0 || n_dims % 2 != 0 || n_dims > head_dim) {
    return invalid_argument("rope: got " + std::to_string(n_dims) +
                            " rotated channels, want an even number up to the head size " +
                            std::to_string(head_dim));
  }
  if (mode != RopeMode::kNormal && mode != RopeMode::kNeox) {
    return invalid_argument("rope: got mode " + std::to_string(static_cast<int>(mode)) +
                            ", want 0 (normal) or 2 (NeoX)");
  }
  if (!freq_factors.empty() && freq_factors.size() != static_cast<std::size_t>(n_dims) / 2) {
    return invalid_argument("rope: got " + std::to_string(freq_factors.size()) +
                            " frequency factors, want one a pair = " + std::to_string(n_dims / 2));
  }
  const float floats[] = {freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow};
  for (const float value : floats) {
    if (!std::isfinite(value)) {
      return invalid_argument("rope: a parameter is not finite");
    }
  }
  for (const float factor : freq_factors) {
    if (!std::isfinite(factor) || factor == 0.0F) {
      return invalid_argument("rope: frequency factor " + std::to_string(factor) +
                              " is zero or not finite");
    }
  }
  if (freq_base <= 0.0F || attn_factor == 0.0F || (ext_factor != 0.0F && freq_scale <= 0.0F)) {
    return invalid_argument("rope: frequency base " + std::to_string(freq_base) + ", scale " +
                            std::to_string(freq_scale) + " and magnitude " +
                            std::to_string(attn_factor) + " must be positive");
  }
  return {};
}

int RopeSections::position_of(int pair) const {
  const int sector = pair % std::max(sizes[0] + sizes[1] + sizes[2] + sizes[3], 1);
  if (interleaved) {
    return sector < 3 * sizes[sector % 3] ? sector % 3 : 3;
  }
  int position = 0;
  for (int end = sizes[0]; position < 3 && sector >= end; end += sizes[position]) {
    position++;
  }
  return position;
}

void RopeSections::stop_fourth(int n_pairs, std::vector<float>& freq_factors) const {
  constexpr float kStill = 1e30F;  // divides every angle to nothing
  for (int pair = 0; pair < n_pairs; pair++) {
    if (position_of(pair) == 3) {
      freq_factors.resize(static_cast<std::size_t>(n_pairs), 1.0F);
      freq_factors[static_cast<std::size_t>(pair)] = kStill;
    }
  }
}

RopeFrequencies RopeFrequencies::of(const RopeParams& params) {
  RopeFrequencies result;
  result.magnitude = magnitude_of(params);
  const YarnRamp ramp(params);
  const double scale = theta_scale(params);
  double frequency = 1.0;
  for (int i = 0; i < params.n_dims / 2; i++) {
    const double factor = params.freq_factors.empty() ? 1.0 : params.freq_factors[i];
    const double extrapolated = frequency / factor;
    const double mix = ramp.mix(i);
    const double interpolated = params.freq_scale * extrapolated;
    result.frequency.push_back(interpolated * (1 - mix) + extrapolated * mix);
    frequency *= scale;
  }
  return result;
}

int RopeFrequencies::n_turning(int n_positions) const {
  auto n = static_cast<int>(frequency.size());
  while (n > 0 && std::abs(frequency[n - 1]) * n_positions <= kLargestStandstill) {
    n--;
  }
  return std::min(round_up(n, kernels::kPairLanes), static_cast<int>(frequency.size()));
}

void rope_row_ggml(const RopeParams& params, std::int32_t position, float* cosines, float* sines) {
  const YarnRamp ramp(params);
  const float scale = theta_scale(params);
  const float magnitude = magnitude_of(params);
  auto theta_base = static_cast<float>(position);
  for (int i = 0; i < params.n_dims / 2; i++) {
    const float factor = params.freq_factors.empty() ? 1.0F : params.freq_factors[i];
    const float extrapolated = theta_base / factor;
    const float interpolated = params.freq_scale * extrapolated;
    float theta = interpolated;
    if (params.ext_factor != 0.0F) {
      const float mix = ramp.mix(i);
      theta = interpolated * (1 - mix) + extrapolated * mix;
    }
    cosines[i] = std::cos(theta) * magnitude;
    sines[i] = std::sin(theta) * magnitude;
    theta_base *= scale;
  }
}

void rope_inverse(const RopeParams& params, const float* cosines, const float* sines, int n_heads,
                  int head_dim, float* row) {
  const float magnitude = magnitude_of(params);
  turn(params, cosines, sines, -1.0F, 1.0F / (magnitude * magnitude), n_heads, head_dim, row);
}

void rope_transposed(const RopeParams& params, const float* cosines, const float* sines,
                     int n_heads, int head_dim, float* row) {
  turn(params, cosines, sines, -1.0F, 1.0F, n_heads, head_dim, row);
}

void rope_forward(const RopeParams& params, const float* cosines, const float* sines, int n_heads,
                  int head_dim, float* row) {
  turn(params, cosines, sines, 1.0F, 1.0F, n_heads, head_dim, row);
}

RopeTable::RopeTable(const RopeParams& params)
    : params_(params),
      frequencies_(RopeFrequencies::of(params)),
      n_padded_(padded_pairs(params)),
      low_run_(static_cast<std::size_t>(params.n_dims) * kBlockCells),
      low_(kBlockCells * 2 * n_padded_),
      centred_(static_cast<std::size_t>(params.n_dims) * kBlockCells) {
  const int n_pairs = params.n_dims / 2;
  for (int l = 0; l < kBlockCells; l++) {
    float* row = low_.data() + l * 2 * n_padded_;
    table_row(frequencies_, l, frequencies_.magnitude, n_padded_, row);
    for (int i = 0; i < n_pairs; i++) {
      low_run_[i * kBlockCells + l] = row[i];
      low_run_[(n_pairs + i) * kBlockCells + l] = row[n_padded_ + i];
      const double angle = frequencies_.frequency[i] * (l - kBlockCentre);
      centred_[i * kBlockCells + l] = static_cast<float>(std::cos(angle));
      centred_[(n_pairs + i) * kBlockCells + l] = static_cast<float>(std::sin(angle));
    }
  }
}

void RopeTable::reserve(std::int32_t n_positions) {
  const std::size_t row_floats = 2 * n_padded_;
  const std::size_t have = high_.size() / row_floats;
  const auto want =
      (static_cast<std::size_t>(std::max(n_positions, 0)) + kBlockCells - 1) / kBlockCells;
  if (want <= have) {
    return;
  }
  high_.resize(want * row_floats);
  for (std::size_t h = have; h < want; h++) {
    table_row(frequencies_, static_cast<double>(h) * kBlockCells, 1.0, n_padded_,
              high_.data() + h * row_floats);
  }
}

void RopeTable::block(const std::int32_t* positions, float* cosines, float* sines) const {
  const std::size_t row_floats = 2 * n_padded_;
  const auto n_high = static_cast<std::int64_t>(high_.size() / row_floats);
  const std::int64_t first_high = high_of(positions[0]);
  if (is_whole_block(positions) && first_high >= 0 && first_high < n_high) {
    kernels::active().combine_run(low_run_.data(), high_.data() + first_high * row_floats,
                                  params_.n_dims / 2, cosines, sines);
    return;
  }
  const float* low[kBlockCells];
  const float* high[kBlockCells];
  bool all_in_table = true;
  for (int t = 0; t < kBlockCells; t++) {
    const std::int64_t h = high_of(positions[t]);
    const bool in_table = h >= 0 && h < n_high;
    all_in_table = all_in_table && in_table;
    low[t] = low_.data() + (positions[t] - h * kBlockCells) * row_floats;
    high[t] = in_table ? high_.data() + h * row_floats : low_.data();
  }
  kernels::active().combine_angles(low, high, params_.n_dims / 2, cosines, sines);
  for (int t = 0; !all_in_table && t < kBlockCells; t++) {
    const std::int64_t h = high_of(positions[t]);
    if (h < 0 || h >= n_high) {
      outside_table(h, low[t], cosines + t, sines + t);
    }
  }
}

void RopeTable::row(std::int64_t position, float* cosines, float* sines) const {
  const std::size_t row_floats = 2 * n_padded_;
  const std::int64_t h = high_of(position);
  const float* low = low_.data() + (position - h * kBlockCells) * row_floats;
  const bool in_table = h >= 0 && h < static_cast<std::int64_t>(high_.size() / row_floats);
  const float* high = in_table ? high_.data() + h * row_floats : nullptr;
  for (int i = 0; i < params_.n_dims / 2; i++) {
    const double angle =
        in_table ? 0.0 : frequencies_.frequency[i] * static_cast<double>(h * kBlockCells);
    const float high_cos = in_table ? high[i] : static_cast<float>(std::cos(angle));
    const float high_sin = in_table ? high[n_padded_ + i] : static_cast<float>(std::sin(angle));
    cosines[i] = high_cos * low[i] - high_sin * low[n_padded_ + i];
    sines[i] = high_sin * low[i] + high_cos * low[n_padded_ + i];
  }
}

void RopeTable::outside_table(std::int64_t h, const float* low, float* cosines,
                              float* sines) const {
  for (int i = 0; i < params_.n_dims / 2; i++) {
    const double angle = frequencies_.frequency[i] * static_cast<double>(h * kBlockCells);
    const auto high_cos = static_cast<float>(std::cos(angle));
    const auto high_sin = static_cast<float>(std::sin(angle));
    cosines[i * kBlockCells] = high_cos * low[i] - high_sin * low[n_padded_ + i];
    sines[i * kBlockCells] = high_sin * low[i] + high_cos * low[n_padded_ + i];
  }
}

}  // namespace cqkv
