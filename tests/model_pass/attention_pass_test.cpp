// Attention of calibration against itself spelled out in doubles, and its far gradients against
// finite differences in which near and far copies of keys and values are separate inputs. Whole
// models are in gradient_test.cpp.
#include "model_pass/attention_pass.h"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

using Rows = std::vector<float>;

struct Case {
  AttentionShape shape;
  ExactTokens exact;
};

Rows random_rows(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  Rows rows(n);
  for (float& value : rows) {
    value = static_cast<float>(rng.normal());
  }
  return rows;
}

// Queries, and two copies of keys and values: which one a query reads is told by ExactTokens. They
// are alike unless one is coded.
struct Inputs {
  Rows queries, near_keys, near_values, far_keys, far_values;

  explicit Inputs(const AttentionShape& shape)
      : queries(random_rows(shape.n_tokens * shape.query_stride(), 1)),
        near_keys(random_rows(shape.n_tokens * shape.kv_stride(), 2)),
        near_values(random_rows(shape.n_tokens * shape.kv_stride(), 3)),
        far_keys(near_keys),
        far_values(near_values) {}

  void code(const AttentionShape& shape) {
    far_keys = random_rows(shape.n_tokens * shape.kv_stride(), 6);
    far_values = random_rows(shape.n_tokens * shape.kv_stride(), 7);
    coded = true;
  }

  bool coded = false;
};

// sum over queries, heads and channels of out * weight.
double objective(const Case& c, const Inputs& in, const Rows& weight) {
  const AttentionShape& shape = c.shape;
  double sum = 0;
  for (std::size_t head = 0; head < shape.n_heads; head++) {
    const std::size_t kv = head / shape.heads_per_kv() * shape.head_dim;
    for (std::size_t t = 0; t < shape.n_tokens; t++) {
      const std::size_t at = t * shape.query_stride() + head * shape.head_dim;
      std::vector<double> p;
      double total = 0;
      for (std::size_t s = shape.first_seen(t); s <= t; s++) {
        const Rows& keys = c.exact.holds(t, s) ? in.near_keys : in.far_keys;
        double score = 0;
        for (std::size_t d = 0; d < shape.head_dim; d++) {
          score += static_cast<double>(in.queries[at + d]) * keys[s * shape.kv_stride() + kv + d];
        }
        p.push_back(std::exp(score * shape.scale));
        total += p.back();
      }
      for (std::size_t i = 0; i < p.size(); i++) {
        const std::size_t s = shape.first_seen(t) + i;
        const Rows& values = c.exact.holds(t, s) ? in.near_values : in.far_values;
        for (std::size_t d = 0; d < shape.head_dim; d++) {
          sum += p[i] / total * values[s * shape.kv_stride() + kv + d] * weight[at + d];
        }
      }
    }
  }
  return sum;
}

struct Gradients {
  Rows out, queries, keys, values, far_keys, far_values;
};

Gradients gradients_of(const Case& c, const Inputs& in, const Rows& weight, int n_threads,
                       bool with_far) {
  ThreadParallelFor parallel(n_threads);
  AttentionPass pass(dense::table(), parallel);
  const AttentionShape& shape = c.shape;
  const std::size_t n_kv = shape.n_tokens * shape.kv_stride();
  Rows out(in.queries.size());
  Rows lse(shape.n_heads * shape.n_tokens);
  const AttentionRows rows{
      in.queries.data(),
      in.near_keys.data(),
      in.near_values.data(),
      out.data(),
      lse.data(),
      c.exact,
      in.coded ? CodedRows{in.far_keys.data(), in.far_values.data()} : CodedRows{}};
  pass.forward(shape, rows);
  Gradients g{out, Rows(in.queries.size()), Rows(n_kv), Rows(n_kv), Rows(n_kv), Rows(n_kv)};
  const FarGradients far{g.far_keys.data(), g.far_values.data()};
  pass.backward(shape, rows, {weight.data(), g.queries.data(), g.keys.data(), g.values.data()},
                with_far ? &far : nullptr);
  return g;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {{150, 4, 2, 16, 0.25F, 0}, {20, 3}}, {{150, 2, 1, 16, 0.25F, 0}, {0, 0}},
      {{100, 2, 2, 8, 0.4F, 0}, {1000, 0}}, {{131, 3, 1, 16, 0.3F, 40}, {20, 2}},
      {{97, 2, 1, 16, 0.3F, 0}, {0, 60}},   {{97, 2, 1, 16, 0.3F, 30}, {60, 4}},
      {{49, 1, 1, 16, 0.3F, 0}, {1, 0}},
  };
  return list;
}

// Central differences of the double objective; f32 sums of some hundred terms near 1 are good to
// 1e-4.
void expect_derivative(const Case& c, Inputs& in, Rows& input, const Rows& weight,
                       const Rows& gradient, const char* what) {
  Rng rng(9);
  constexpr double kStep = 1e-3;
  for (int i = 0; i < 40; i++) {
    const std::size_t at = rng.below(input.size());
    const float before = input[at];
    input[at] = static_cast<float>(before + kStep);
    const double above = objective(c, in, weight);
    const double step_up = static_cast<double>(input[at]) - before;
    input[at] = static_cast<float>(before - kStep);
    const double below = objective(c, in, weight);
    const double step_down = before - static_cast<double>(input[at]);
    input[at] = before;
    const double want = (above - below) / (step_up + step_down);
    ASSERT_NEAR(gradient[at], want, 2e-4 + 2e-4 * std::abs(want)) << what << " " << at;
  }
}

void expect_gradients(bool coded) {
  for (std::size_t i = 0; i < cases().size(); i++) {
    const Case& c = cases()[i];
    SCOPED_TRACE("case " + std::to_string(i));
    Inputs in(c.shape);
    if (coded) {
      in.code(c.shape);
    }
    const Rows weight = random_rows(in.queries.size(), 4);
    const Gradients g = gradients_of(c, in, weight, 2, true);
    expect_derivative(c, in, in.far_keys, weight, g.far_keys, "far key");
    expect_derivative(c, in, in.far_values, weight, g.far_values, "far value");
    Rows near_keys(g.keys.size());
    Rows near_values(g.keys.size());
    for (std::size_t j = 0; j < g.keys.size(); j++) {
      near_keys[j] = g.keys[j] - g.far_keys[j];
      near_values[j] = g.values[j] - g.far_values[j];
    }
    expect_derivative(c, in, in.near_keys, weight, near_keys, "near key");
    expect_derivative(c, in, in.near_values, weight, near_values, "near value");
    expect_derivative(c, in, in.queries, weight, g.queries, "query");
  }
}

TEST(AttentionPass, FarGradientsAreThoseByASecondCopy) {
  expect_gradients(false);
}

TEST(AttentionPass, FarGradientsAreThoseByACodedCopy) {
  expect_gradients(true);
}

TEST(AttentionPass, ReadsTheCopyThatEachQueryHas) {
  for (const Case& c : cases()) {
    Inputs in(c.shape);
    in.code(c.shape);
    const Rows weight = random_rows(in.queries.size(), 8);
    const Gradients g = gradients_of(c, in, weight, 2, true);
    double sum = 0;
    for (std::size_t i = 0; i < weight.size(); i++) {
      sum += static_cast<double>(g.out[i]) * weight[i];
    }
    EXPECT_NEAR(sum, objective(c, in, weight),
                2e-4 * std::sqrt(static_cast<double>(weight.size())));
    const Gradients threads = gradients_of(c, in, weight, 3, true);
    EXPECT_EQ(threads.out, g.out);
    EXPECT_EQ(threads.queries, g.queries);
    EXPECT_EQ(threads.far_keys, g.far_keys);
  }
}

TEST(AttentionPass, FarGradientsLeaveTheWholeOnesAsTheyAre) {
  for (const Case& c : cases()) {
    const Inputs in(c.shape);
    const Rows weight = random_rows(in.queries.size(), 5);
    const Gradients plain = gradients_of(c, in, weight, 1, false);
    const Gradients with = gradients_of(c, in, weight, 1, true);
    EXPECT_EQ(with.queries, plain.queries);
    for (std::size_t i = 0; i < plain.keys.size(); i++) {
      ASSERT_NEAR(with.keys[i], plain.keys[i], 1e-4 * (1 + std::abs(plain.keys[i])));
      ASSERT_NEAR(with.values[i], plain.values[i], 1e-4 * (1 + std::abs(plain.values[i])));
    }
    const Gradients threads = gradients_of(c, in, weight, 3, true);
    EXPECT_EQ(threads.far_keys, with.far_keys);
    EXPECT_EQ(threads.keys, with.keys);
    EXPECT_EQ(threads.far_values, with.far_values);
  }
}

}  // namespace
}  // namespace cqkv
