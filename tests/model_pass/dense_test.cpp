// Every table of dense.h that this processor can run against a double reference, at
// shapes around the tiles' edges.
#include "model_pass/dense.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "isa/select.h"
#include "isa/table_walk.h"

namespace cqkv::dense {
namespace {

constexpr float kEps = 1.2e-7F;

std::vector<float> random_values(std::size_t n, std::uint64_t seed, float deviation = 1.0F) {
  Rng rng(seed);
  std::vector<float> values(n);
  for (auto& value : values) {
    value = deviation * static_cast<float>(rng.normal());
  }
  return values;
}

class DenseTest : public ::testing::TestWithParam<const Table*> {
 protected:
  const Table& table() const { return *GetParam(); }
};

struct Shape {
  std::size_t n_rows, n_inner, n_columns;
};

// c (+)= a b with a given plainly or transposed; the error bound is that of a sum of n terms.
void check_product(const Table& table, const Shape& s, bool transpose_a, bool accumulate) {
  SCOPED_TRACE(std::string(isa::level_name(table.level)) + " " + std::to_string(s.n_rows) + " x " +
               std::to_string(s.n_inner) + " x " + std::to_string(s.n_columns));
  const auto a = random_values(s.n_rows * s.n_inner, 1);
  const auto b = random_values(s.n_inner * s.n_columns, 2);
  const std::size_t stride = s.n_columns + 3;
  std::vector<float> c = random_values(s.n_rows * stride, 3);
  const std::vector<float> before = c;
  const auto n_rows = static_cast<std::ptrdiff_t>(s.n_rows);
  const auto n_inner = static_cast<std::ptrdiff_t>(s.n_inner);
  const View view = transpose_a ? View{a.data(), 1, n_rows} : View{a.data(), n_inner, 1};
  Packed packed;
  packed.resize(s.n_inner, s.n_columns, table.panel);
  table.pack(packed.data.data(), packed.n_inner, {0, s.n_inner, 0, s.n_columns},
             {b.data(), static_cast<std::ptrdiff_t>(s.n_columns), 1});
  table.multiply({view, s.n_rows, packed.view(), 0, 0, c.data(), stride, accumulate});
  for (std::size_t i = 0; i < s.n_rows; i++) {
    for (std::size_t j = 0; j < stride; j++) {
      double sum = accumulate ? before[i * stride + j] : 0.0;
      double size = std::fabs(sum);
      for (std::size_t k = 0; k < s.n_inner && j < s.n_columns; k++) {
        const double term =
            static_cast<double>(transpose_a ? a[k * s.n_rows + i] : a[i * s.n_inner + k]) *
            b[k * s.n_columns + j];
        sum += term;
        size += std::fabs(term);
      }
      if (j >= s.n_columns) {
        ASSERT_EQ(c[i * stride + j], before[i * stride + j]) << "written beyond the row";
      } else {
        ASSERT_NEAR(c[i * stride + j], sum, kEps * (8 + std::sqrt(s.n_inner)) * size);
      }
    }
  }
}

TEST_P(DenseTest, MultipliesLikeTheReference) {
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{12, 64, 32}, Shape{13, 65, 33}, Shape{7, 300, 31},
        Shape{25, 513, 100}, Shape{96, 17, 64}, Shape{5, 256, 15}, Shape{11, 257, 16}}) {
    for (const bool transpose : {false, true}) {
      check_product(table(), shape, transpose, false);
      check_product(table(), shape, transpose, true);
    }
  }
}

// Causal attention multiplies by the first keys only.
TEST_P(DenseTest, MultipliesByAPartOfThePackedMatrix) {
  const std::size_t n = 70;
  const auto a = random_values(n, 1);
  const auto b = random_values(n * n, 2);
  Packed packed;
  packed.resize(n, n, table().panel);
  table().pack(packed.data.data(), packed.n_inner, {0, n, 0, n},
               {b.data(), static_cast<std::ptrdiff_t>(n), 1});
  const std::size_t n_inner = 33;
  const std::size_t n_columns = 41;
  std::vector<float> c(n, -1.0F);
  table().multiply({{a.data(), 0, 1}, 1, packed.view(), n_inner, n_columns, c.data(), n, false});
  for (std::size_t j = 0; j < n; j++) {
    double sum = 0.0;
    for (std::size_t k = 0; k < n_inner; k++) {
      sum += static_cast<double>(a[k]) * b[k * n + j];
    }
    EXPECT_NEAR(c[j], j < n_columns ? sum : -1.0, 1e-5);
  }
}

TEST_P(DenseTest, PacksPartsLikeTheWhole) {
  const std::size_t n_rows = 20;
  const std::size_t n_columns = 3 * table().panel + 5;
  const auto values = random_values(n_rows * n_columns, 4);
  const auto stride = static_cast<std::ptrdiff_t>(n_columns);
  Packed whole;
  Packed parts;
  whole.resize(n_rows, n_columns, table().panel);
  parts.resize(n_rows, n_columns, table().panel);
  table().pack(whole.data.data(), whole.n_inner, {0, n_rows, 0, n_columns},
               {values.data(), stride, 1});
  const std::size_t cut = 2 * table().panel;
  for (const std::size_t row : {std::size_t{0}, std::size_t{13}}) {
    const std::size_t n = row == 0 ? 13 : n_rows - 13;
    const float* from = values.data() + row * n_columns;
    table().pack(parts.data.data(), parts.n_inner, {row, n, 0, cut}, {from, stride, 1});
    table().pack(parts.data.data(), parts.n_inner, {row, n, cut, n_columns - cut},
                 {from + cut, stride, 1});
  }
  for (std::size_t i = 0; i < whole.data.size(); i++) {
    ASSERT_EQ(whole.data.data()[i], parts.data.data()[i]);
  }
}

TEST_P(DenseTest, SoftmaxSumsToOneAndReturnsItsScale) {
  for (const std::size_t n : {1, 2, 15, 16, 17, 100}) {
    auto scores = random_values(n, n, 20.0F);
    const auto before = scores;
    const float scale = 0.7F;
    const float lse = table().softmax(scores.data(), n, scale);
    double sum = 0.0;
    for (const float score : before) {
      sum += std::exp(static_cast<double>(scale) * score);
    }
    EXPECT_NEAR(lse, std::log(sum), 4 * kEps * std::fabs(std::log(sum)) + 1e-6);
    auto again = before;
    table().exponentials(again.data(), n, scale, lse);
    for (std::size_t i = 0; i < n; i++) {
      const double expected = std::exp(static_cast<double>(scale) * before[i]) / sum;
      EXPECT_NEAR(scores[i], expected, 1e-5 * expected + 1e-30)
          << isa::level_name(table().level) << " " << n;
      EXPECT_NEAR(again[i], expected, 1e-5 * expected + 1e-30);
    }
  }
}

TEST_P(DenseTest, SoftmaxBackIsTheDerivative) {
  const std::size_t n = 19;
  const auto weights = random_values(n, 1);
  const auto gradients = random_values(n, 2);
  auto result = gradients;
  table().softmax_back(weights.data(), result.data(), n, 0.3F, 0.5F);
  for (std::size_t i = 0; i < n; i++) {
    EXPECT_NEAR(result[i], 0.5 * weights[i] * (gradients[i] - 0.3), 1e-6);
  }
}

using GatedUnit = decltype(Table::swiglu);
using GatedUnitBack = decltype(Table::swiglu_back);

// A gated unit and its derivative against the activation in double.
void check_gated(GatedUnit unit, GatedUnitBack back, double (*activation)(double)) {
  const std::size_t n = 37;
  auto gate = random_values(n, 1, 4.0F);
  gate[0] = 100.0F;  // beyond the range of exp, both ways
  gate[1] = -100.0F;
  const auto up = random_values(n, 2);
  const auto gradient = random_values(n, 3);
  std::vector<float> out(n);
  unit(gate.data(), up.data(), out.data(), n);
  auto by_gate = gate;
  auto by_up = up;
  back(by_gate.data(), by_up.data(), gradient.data(), by_gate.data(), by_up.data(), n);
  for (std::size_t i = 0; i < n; i++) {
    const double step = 1e-5;
    const double slope = (activation(gate[i] + step) - activation(gate[i] - step)) / (2 * step);
    EXPECT_NEAR(out[i], activation(gate[i]) * up[i], 1e-5);
    EXPECT_NEAR(by_gate[i], gradient[i] * up[i] * slope, 1e-5);
    EXPECT_NEAR(by_up[i], gradient[i] * activation(gate[i]), 4 * kEps * 100);
  }
}

TEST_P(DenseTest, SwigluAndItsDerivative) {
  check_gated(table().swiglu, table().swiglu_back,
              [](double x) { return x / (1.0 + std::exp(-x)); });
}

TEST_P(DenseTest, GegluAndItsDerivative) {
  check_gated(table().geglu, table().geglu_back, [](double x) {
    return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
  });
}

double norm_product(const std::vector<double>& x, const std::vector<float>& weight,
                    const std::vector<float>& gradient, double epsilon) {
  double square = 0.0;
  double product = 0.0;
  for (std::size_t i = 0; i < x.size(); i++) {
    square += x[i] * x[i];
    product += x[i] * weight[i] * gradient[i];
  }
  return product / std::sqrt(square / static_cast<double>(x.size()) + epsilon);
}

TEST_P(DenseTest, RmsNormAndItsDerivative) {
  const std::size_t n = 45;
  const float epsilon = 1e-2F;
  const auto x = random_values(n, 1);
  const auto weight = random_values(n, 2);
  const auto gradient = random_values(n, 3);
  std::vector<float> out(n);
  std::vector<float> back(n, 1.0F);  // it adds
  table().rms_norm(x.data(), weight.data(), out.data(), n, epsilon);
  table().rms_norm_back(x.data(), weight.data(), gradient.data(), back.data(), n, epsilon);
  const double scale = norm_product({x.begin(), x.end()}, weight, gradient, epsilon);
  EXPECT_NEAR(table().dot(out.data(), gradient.data(), n), scale, 1e-4);
  for (std::size_t i = 0; i < n; i++) {
    std::vector<double> moved(x.begin(), x.end());
    moved[i] += 1e-5;
    const double above = norm_product(moved, weight, gradient, epsilon);
    moved[i] -= 2e-5;
    const double below = norm_product(moved, weight, gradient, epsilon);
    EXPECT_NEAR(back[i] - 1.0, (above - below) / 2e-5, 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DenseTest, ::testing::ValuesIn(supported_tables()),
                         [](const auto& test) {
                           return std::string(isa::level_name(test.param->level));
                         });

// At avx512_vbmi the products once were the portable ones, having no table of that name.
TEST(DenseTables, NoLevelIsServedWorseThanTheOneBelow) {
  testing::walk_levels(table_for, "dense products");
  const isa::Level want =
      isa::compiled(isa::Level::kAvx512) ? isa::Level::kAvx512 : isa::Level::kScalar;
  EXPECT_EQ(table_for(isa::Level::kAvx512Vbmi).level, want);
}

}  // namespace
}  // namespace cqkv::dense
