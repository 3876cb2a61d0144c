// Our rope against ggml's ROPE operator: rope_row_ggml must give the angles that rows
// from ggml were rotated with. Left out: positions beyond 131072.
#include <cmath>
#include <memory>
#include <vector>

#include <ggml-cpu.h>
#include <ggml.h>
#include <gtest/gtest.h>

#include "core/rng.h"
#include "rope/rope.h"

namespace cqkv {
namespace {

struct NamedParams {
  const char* name;
  RopeParams params;
};

RopeParams params_of(int n_dims, RopeMode mode, float freq_base) {
  RopeParams params;
  params.n_dims = n_dims;
  params.mode = mode;
  params.freq_base = freq_base;
  params.n_ctx_orig = 4096;
  return params;
}

// The forms of rope that models in use have.
std::vector<NamedParams> all_params() {
  std::vector<NamedParams> all;
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    all.push_back({"plain", params_of(64, mode, 10000.0F)});
    all.push_back({"long base", params_of(128, mode, 1000000.0F)});
    all.push_back({"partial", params_of(20, mode, 10000.0F)});
    RopeParams linear = params_of(64, mode, 10000.0F);
    linear.freq_scale = 0.25F;
    all.push_back({"linear scaling", linear});
    RopeParams yarn = params_of(64, mode, 10000.0F);
    yarn.freq_scale = 0.125F;
    yarn.ext_factor = 1.0F;
    yarn.attn_factor = 0.9F;
    all.push_back({"YaRN", yarn});
    RopeParams factors = params_of(64, mode, 500000.0F);
    for (int i = 0; i < 32; i++) {
      factors.freq_factors.push_back(1.0F + static_cast<float>(i * i) / 128.0F);
    }
    all.push_back({"frequency factors", factors});
  }
  return all;
}

struct ContextDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

// Rows [n_positions, head_dim] through ggml's operator.
std::vector<float> rotate_by_ggml(RopeParams params, const std::vector<std::int32_t>& positions,
                                  int head_dim, const std::vector<float>& rows) {
  const std::unique_ptr<ggml_context, ContextDeleter> context(
      ggml_init({std::size_t{16} << 20U, nullptr, false}));
  const auto n = static_cast<std::int64_t>(positions.size());
  ggml_tensor* x = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, head_dim, 1, n);
  std::copy(rows.begin(), rows.end(), static_cast<float*>(x->data));
  ggml_tensor* p = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, n);
  std::copy(positions.begin(), positions.end(), static_cast<std::int32_t*>(p->data));
  ggml_tensor* factors = nullptr;
  if (!params.freq_factors.empty()) {
    factors = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, params.n_dims / 2);
    std::copy(params.freq_factors.begin(), params.freq_factors.end(),
              static_cast<float*>(factors->data));
  }
  ggml_tensor* out =
      ggml_rope_ext(context.get(), x, p, factors, params.n_dims, static_cast<int>(params.mode),
                    params.n_ctx_orig, params.freq_base, params.freq_scale, params.ext_factor,
                    params.attn_factor, params.beta_fast, params.beta_slow);
  ggml_cgraph* graph = ggml_new_graph(context.get());
  ggml_build_forward_expand(graph, out);
  EXPECT_EQ(ggml_graph_compute_with_ctx(context.get(), graph, 1), GGML_STATUS_SUCCESS);
  const auto* data = static_cast<const float*>(out->data);
  return {data, data + rows.size()};
}

constexpr int kHeadDim = 128;
const std::vector<std::int32_t> kPositions = {0, 1, 5, 63, 64, 1000, 4095, 32767, 131072};

std::vector<float> random_rows() {
  Rng rng(7);
  std::vector<float> rows(kPositions.size() * kHeadDim);
  for (float& value : rows) {
    value = static_cast<float>(rng.normal());
  }
  return rows;
}

// Rotating a pair by an angle that is off by e moves it by |e| times its length. ggml
// is compiled with contraction, so where YaRN mixes two angles ours may round
// differently: 2 eps of the angle, at most 131072 * 2^-22 = 0.03 rad if a pair turns
// by one radian a position; the mixed pairs are slower by the factor 1 / (2 pi
// beta_fast / n_ctx) and more. Elsewhere the angles are equal and only products round.
double tolerance(const RopeParams& params, std::int32_t position) {
  constexpr double kEpsilon = 0x1p-23;
  const double mixed = params.ext_factor == 0.0F ? 0.0 : position * 0.05 * 2 * kEpsilon;
  return 5.0 * (mixed + 4 * kEpsilon);
}

TEST(RopeGgml, ForwardRotatesAsGgml) {
  const std::vector<float> rows = random_rows();
  for (const NamedParams& named : all_params()) {
    const RopeParams& params = named.params;
    const std::vector<float> want = rotate_by_ggml(params, kPositions, kHeadDim, rows);
    std::vector<float> row(kHeadDim);
    std::vector<float> cosines(params.n_dims / 2);
    std::vector<float> sines(params.n_dims / 2);
    for (std::size_t r = 0; r < kPositions.size(); r++) {
      std::copy_n(rows.begin() + r * kHeadDim, kHeadDim, row.begin());
      rope_row_ggml(params, kPositions[r], cosines.data(), sines.data());
      rope_forward(params, cosines.data(), sines.data(), 1, kHeadDim, row.data());
      for (int d = 0; d < kHeadDim; d++) {
        ASSERT_NEAR(row[d], want[r * kHeadDim + d], tolerance(params, kPositions[r]))
            << named.name << " mode " << static_cast<int>(params.mode) << " position "
            << kPositions[r] << " channel " << d;
      }
    }
  }
}

TEST(RopeGgml, InverseUndoesGgmlsRotation) {
  const std::vector<float> rows = random_rows();
  for (const NamedParams& named : all_params()) {
    const RopeParams& params = named.params;
    std::vector<float> rotated = rotate_by_ggml(params, kPositions, kHeadDim, rows);
    std::vector<float> cosines(params.n_dims / 2);
    std::vector<float> sines(params.n_dims / 2);
    for (std::size_t r = 0; r < kPositions.size(); r++) {
      float* row = rotated.data() + r * kHeadDim;
      rope_row_ggml(params, kPositions[r], cosines.data(), sines.data());
      rope_inverse(params, cosines.data(), sines.data(), 1, kHeadDim, row);
      for (int d = 0; d < kHeadDim; d++) {
        ASSERT_NEAR(row[d], rows[r * kHeadDim + d], tolerance(params, kPositions[r]))
            << named.name << " position " << kPositions[r] << " channel " << d;
      }
    }
  }
}

// One row of n_dims ones and zeros, through ggml's operator: pair i ends as the cosine and sine of
// i's angle at one of four positions.
std::vector<float> rotate_in_sections(const RopeSections& sections, const std::int32_t (&at)[4],
                                      int n_dims) {
  const std::unique_ptr<ggml_context, ContextDeleter> context(
      ggml_init({std::size_t{1} << 20U, nullptr, false}));
  ggml_tensor* x = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, n_dims, 1, 1);
  std::fill_n(static_cast<float*>(x->data), n_dims / 2, 1.0F);
  std::fill_n(static_cast<float*>(x->data) + n_dims / 2, n_dims / 2, 0.0F);
  ggml_tensor* p = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 4);
  std::copy_n(at, 4, static_cast<std::int32_t*>(p->data));
  int sizes[4];
  std::copy_n(sections.sizes, 4, sizes);
  ggml_tensor* out =
      ggml_rope_multi(context.get(), x, p, nullptr, n_dims, sizes,
                      sections.interleaved ? GGML_ROPE_TYPE_IMROPE : GGML_ROPE_TYPE_MROPE, 4096,
                      10000.0F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
  ggml_cgraph* graph = ggml_new_graph(context.get());
  ggml_build_forward_expand(graph, out);
  EXPECT_EQ(ggml_graph_compute_with_ctx(context.get(), graph, 1), GGML_STATUS_SUCCESS);
  const auto* data = static_cast<const float*>(out->data);
  return {data, data + n_dims};
}

const std::vector<RopeSections> kSections = {{{16, 24, 24, 0}, false},  {{8, 12, 12, 0}, false},
                                             {{11, 11, 10, 0}, true},   {{24, 20, 20, 0}, true},
                                             {{16, 16, 16, 16}, false}, {{16, 16, 16, 16}, true},
                                             {{20, 6, 6, 0}, true},     {{64, 0, 0, 0}, false}};

// Each pair's angle shows which of four positions turned it.
TEST(RopeGgml, PairsOfSectionsHaveGgmlsPosition) {
  constexpr int kDims = 128;
  const std::int32_t positions[4] = {1, 2, 3, 4};
  for (const RopeSections& sections : kSections) {
    const std::vector<float> got = rotate_in_sections(sections, positions, kDims);
    for (int i = 0; i < kDims / 2; i++) {
      const double angle = positions[sections.position_of(i)] * std::pow(10000.0, -2.0 * i / kDims);
      ASSERT_NEAR(got[i], std::cos(angle), 1e-6) << "pair " << i;
      ASSERT_NEAR(got[i + kDims / 2], std::sin(angle), 1e-5 * angle) << "pair " << i;
    }
  }
}

// What text has as positions: NeoX, but for pairs that take the fourth.
TEST(RopeGgml, SectionsAreNeoxForText) {
  constexpr int kDims = 128;
  int n_plain = 0;
  for (const RopeSections& sections : kSections) {
    RopeParams params = params_of(kDims, RopeMode::kNeox, 10000.0F);
    sections.stop_fourth(kDims / 2, params.freq_factors);
    n_plain += params.freq_factors.empty() ? 1 : 0;
    ASSERT_TRUE(params.check(kDims).ok());
    std::vector<float> row(kDims);
    std::fill_n(row.begin(), kDims / 2, 1.0F);
    const std::vector<float> neox = rotate_by_ggml(params, {4711}, kDims, row);
    const std::vector<float> text = rotate_in_sections(sections, {4711, 4711, 4711, 0}, kDims);
    for (int d = 0; d < kDims; d++) {
      ASSERT_NEAR(text[d], neox[d], 1e-20) << "channel " << d;
    }
  }
  EXPECT_EQ(n_plain, 4);
}

// Attention's angles are exact where ggml's are f32 with iterated products: theta of
// pair i carries about i roundings. Keys are rotated back by ggml's and forward by the
// exact ones, so this difference is what coding adds to a key.
TEST(RopeGgml, TablesFollowGgmlsAngles) {
  for (const NamedParams& named : all_params()) {
    const RopeParams& params = named.params;
    const RopeFrequencies frequencies = RopeFrequencies::of(params);
    std::vector<float> cosines(params.n_dims / 2);
    std::vector<float> sines(params.n_dims / 2);
    for (const std::int32_t position : kPositions) {
      rope_row_ggml(params, position, cosines.data(), sines.data());
      for (int i = 0; i < params.n_dims / 2; i++) {
        const double angle = frequencies.frequency[i] * position;
        const double allowed = (i + 4) * 0x1p-24 * angle + 0x1p-22;
        ASSERT_NEAR(cosines[i], std::cos(angle) * frequencies.magnitude, allowed)
            << named.name << " position " << position << " pair " << i;
        ASSERT_NEAR(sines[i], std::sin(angle) * frequencies.magnitude, allowed)
            << named.name << " position " << position << " pair " << i;
      }
    }
  }
}

}  // namespace
}  // namespace cqkv
