// The functions of dense.h's table: one text, compiled once for each instruction set with the
// vectors of that (kernels/simd-inl.h, which also says what holds for all *-inl.h), and the table
// of them. Products and sums written apart become fused multiply-adds where there are such: the
// files are compiled with -ffp-contract=fast, other than the kernels.
#pragma once

#include <cstddef>

#include "kernels/exp-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"
#include "model_pass/dense_table.h"

namespace cqkv::dense {
namespace {

using kernels::IntVec;
using kernels::kLanes;
using kernels::larger;
using kernels::load;
using kernels::multiply_add;
using kernels::splat;
using kernels::store;
using kernels::Vec;

// The accumulators of a product, as the registers have room: 24 of 32, 12 of 16, and 8 of 16 where
// products need one of their own.
constexpr int kTileRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;
constexpr int kTileVectors = 2;

constexpr std::size_t kPanel = kLanes * kTileVectors;
constexpr std::size_t kInnerBlock = 256;  // a block of a panel stays in the first-level cache

inline float sum(Vec value) {
  float total = 0.0F;
  for (int i = 0; i < kLanes; i++) {
    total += value[i];
  }
  return total;
}

// e^x, within 2 ulp. Where it is no normal number, or x is NaN, that of the next x where it is.
inline Vec exponential(Vec x) {
  const Vec above = larger(x, splat(-87.3F));
  const auto e = kernels::exp_parts(above < 88.3F ? above : splat(88.3F),
                                    [](Vec a, Vec b, Vec c) { return multiply_add(a, b, c); });
  const Vec p = multiply_add(e.tail, e.r * e.r, e.r) + 1.0F;
  return p * kernels::exp_scale<IntVec>(e);
}

// The last n < kLanes values; zeros fill the vector.
inline Vec load_part(const float* data, std::size_t n) {
  float part[kLanes] = {};
  __builtin_memcpy(part, data, n * sizeof(float));
  return load(part);
}

inline void store_part(float* data, Vec value, std::size_t n) {
  __builtin_memcpy(data, &value, n * sizeof(float));
}

// One row of a panel: `width` values, `stride` apart, then zeros.
inline void pack_row(const float* in, std::ptrdiff_t stride, std::size_t width, float* out) {
  if (stride == 1) {
    __builtin_memcpy(out, in, width * sizeof(float));
  } else {
    for (std::size_t j = 0; j < width; j++) {
      out[j] = in[static_cast<std::ptrdiff_t>(j) * stride];
    }
  }
  for (std::size_t j = width; j < kPanel; j++) {
    out[j] = 0.0F;
  }
}

inline void pack(float* packed, std::size_t n_inner, const PackPart& part, View values) {
  for (std::size_t column = 0; column < part.n_columns; column += kPanel) {
    const std::size_t width = part.n_columns - column < kPanel ? part.n_columns - column : kPanel;
    float* out = packed + (part.first_column + column) * n_inner + part.first_row * kPanel;
    const float* in = values.data + static_cast<std::ptrdiff_t>(column) * values.column_stride;
    for (std::size_t i = 0; i < part.n_rows; i++, in += values.row_stride, out += kPanel) {
      pack_row(in, values.column_stride, width, out);
    }
  }
}

// One tile [kRows, kPanel] of c. `c` may be a scratch tile at the right edge.
template <int kRows>
inline void tile(const float* a, std::ptrdiff_t row_stride, std::ptrdiff_t inner_stride,
                 const float* b, std::size_t n_inner, float* c, std::size_t c_stride,
                 bool accumulate) {
  Vec sums[kRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; j++) {
      sums[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : Vec{};
    }
  }
  for (std::size_t k = 0; k < n_inner; k++) {
    Vec right[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; j++) {
      right[j] = load(b + j * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; i++) {
      const Vec left = splat(a[i * row_stride]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; j++) {
        sums[i][j] += left * right[j];
      }
    }
    a += inner_stride;
    b += kPanel;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; j++) {
      store(c + i * c_stride + j * kLanes, sums[i][j]);
    }
  }
}

using TileFunction = void (*)(const float*, std::ptrdiff_t, std::ptrdiff_t, const float*,
                              std::size_t, float*, std::size_t, bool);

// Tiles of 1 to kTileRows rows, by number of rows.
template <int kRows>
struct Tiles {
  static TileFunction of(std::size_t n_rows) {
    return n_rows == kRows ? &tile<kRows> : Tiles<kRows - 1>::of(n_rows);
  }
};

template <>
struct Tiles<1> {
  static TileFunction of(std::size_t) { return &tile<1>; }
};

// A tile to compute: `n_columns` of its panel; the first is at c.
struct TileTask {
  TileFunction function;
  View a;
  const float* b;
  std::size_t n_inner;
  std::size_t n_rows;
  std::size_t n_columns;
  float* c;
  std::size_t c_stride;
  bool accumulate;
};

inline void run_tile(const TileTask& t, float* c, std::size_t c_stride) {
  t.function(t.a.data, t.a.row_stride, t.a.column_stride, t.b, t.n_inner, c, c_stride,
             t.accumulate);
}

// A tile that reaches beyond the last column, by way of a full tile beside.
inline void run_edge_tile(const TileTask& t) {
  float scratch[kTileRows * kPanel];
  for (std::size_t i = 0; t.accumulate && i < t.n_rows; i++) {
    __builtin_memcpy(scratch + i * kPanel, t.c + i * t.c_stride, t.n_columns * sizeof(float));
    __builtin_memset(scratch + i * kPanel + t.n_columns, 0, (kPanel - t.n_columns) * sizeof(float));
  }
  run_tile(t, scratch, kPanel);
  for (std::size_t i = 0; i < t.n_rows; i++) {
    __builtin_memcpy(t.c + i * t.c_stride, scratch + i * kPanel, t.n_columns * sizeof(float));
  }
}

// All row tiles of the panel at `column`, for inner indices [k0, k0 + n_inner).
inline void multiply_panel(const Product& p, std::size_t k0, std::size_t n_inner,
                           std::size_t column, std::size_t n_columns) {
  TileTask task{};
  task.accumulate = p.accumulate || k0 > 0;
  task.b = p.b.data + column * p.b.n_inner + k0 * kPanel;
  task.n_inner = n_inner;
  task.n_columns = n_columns - column < kPanel ? n_columns - column : kPanel;
  task.c_stride = p.c_stride;
  for (std::size_t row = 0; row < p.n_rows; row += kTileRows) {
    task.n_rows = p.n_rows - row < kTileRows ? p.n_rows - row : kTileRows;
    task.function = Tiles<kTileRows>::of(task.n_rows);
    task.a = p.a;
    task.a.data += static_cast<std::ptrdiff_t>(row) * p.a.row_stride +
                   static_cast<std::ptrdiff_t>(k0) * p.a.column_stride;
    task.c = p.c + row * p.c_stride + column;
    if (task.n_columns == kPanel) {
      run_tile(task, task.c, task.c_stride);
    } else {
      run_edge_tile(task);
    }
  }
}

inline void multiply(const Product& p) {
  const std::size_t n_inner = p.n_inner == 0 ? p.b.n_inner : p.n_inner;
  const std::size_t n_columns = p.n_columns == 0 ? p.b.n_columns : p.n_columns;
  for (std::size_t k0 = 0; k0 < n_inner; k0 += kInnerBlock) {
    const std::size_t n = n_inner - k0 < kInnerBlock ? n_inner - k0 : kInnerBlock;
    for (std::size_t column = 0; column < n_columns; column += kPanel) {
      multiply_panel(p, k0, n, column, n_columns);
    }
  }
}

inline void exponentials(float* scores, std::size_t n, float scale, float lse) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(scores + i, exponential(load(scores + i) * scale - lse));
  }
  if (i < n) {
    store_part(scores + i, exponential(load_part(scores + i, n - i) * scale - lse), n - i);
  }
}

inline float largest(const float* values, std::size_t n) {
  Vec most = splat(values[0]);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    most = larger(most, load(values + i));
  }
  float result = values[0];
  for (int j = 0; j < kLanes; j++) {
    result = most[j] > result ? most[j] : result;
  }
  for (; i < n; i++) {
    result = values[i] > result ? values[i] : result;
  }
  return result;
}

inline float softmax(float* scores, std::size_t n, float scale) {
  const float most = scale * largest(scores, n);  // scale > 0
  exponentials(scores, n, scale, most);
  Vec sums{};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sums += load(scores + i);
  }
  float total = sum(sums);
  for (; i < n; i++) {
    total += scores[i];
  }
  const float inverse = 1.0F / total;
  for (std::size_t j = 0; j < n; j++) {
    scores[j] *= inverse;
  }
  return most + __builtin_logf(total);
}

inline void softmax_back(const float* weights, float* gradients, std::size_t n, float delta,
                         float scale) {
  for (std::size_t i = 0; i < n; i++) {
    gradients[i] = scale * weights[i] * (gradients[i] - delta);
  }
}

inline void swiglu(const float* gate, const float* up, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t m = n - i < kLanes ? n - i : kLanes;
    const Vec g = load_part(gate + i, m);
    store_part(out + i, g / (1.0F + exponential(-g)) * load_part(up + i, m), m);
  }
}

inline constexpr float kGeluScale = 1.5957691216F;  // 2 sqrt(2 / pi)
inline constexpr float kGeluCubic = 0.044715F;

inline Vec gelu_sigmoid(Vec x) {
  return 1.0F / (1.0F + exponential(-kGeluScale * x * (1.0F + kGeluCubic * x * x)));
}

inline void geglu(const float* gate, const float* up, float* out, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t m = n - i < kLanes ? n - i : kLanes;
    const Vec g = load_part(gate + i, m);
    store_part(out + i, g * gelu_sigmoid(g) * load_part(up + i, m), m);
  }
}

// A gate g * sigmoid: its sigmoid, and its derivative divided by that.
struct Gate {
  Vec sigmoid;
  Vec slope;
};

inline Gate silu_gate(const Vec& g) {
  const Vec sigmoid = 1.0F / (1.0F + exponential(-g));
  return {sigmoid, 1.0F + g * (1.0F - sigmoid)};
}

inline Gate gelu_gate(const Vec& g) {
  const Vec sigmoid = gelu_sigmoid(g);
  const Vec slope = kGeluScale * (1.0F + 3.0F * kGeluCubic * g * g);
  return {sigmoid, 1.0F + g * slope * (1.0F - sigmoid)};
}

template <Gate (*kGate)(const Vec&)>
inline void gated_back(const float* gate, const float* up, const float* gradient,
                       float* gate_gradient, float* up_gradient, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t m = n - i < kLanes ? n - i : kLanes;
    const Vec g = load_part(gate + i, m);
    const Vec u = load_part(up + i, m);
    const Vec d = load_part(gradient + i, m);
    const Gate at = kGate(g);
    store_part(up_gradient + i, d * g * at.sigmoid, m);
    store_part(gate_gradient + i, d * u * at.sigmoid * at.slope, m);
  }
}

inline void swiglu_back(const float* gate, const float* up, const float* gradient,
                        float* gate_gradient, float* up_gradient, std::size_t n) {
  gated_back<silu_gate>(gate, up, gradient, gate_gradient, up_gradient, n);
}

inline void geglu_back(const float* gate, const float* up, const float* gradient,
                       float* gate_gradient, float* up_gradient, std::size_t n) {
  gated_back<gelu_gate>(gate, up, gradient, gate_gradient, up_gradient, n);
}

inline float dot(const float* a, const float* b, std::size_t n) {
  Vec sums{};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sums += load(a + i) * load(b + i);
  }
  float total = sum(sums);
  for (; i < n; i++) {
    total += a[i] * b[i];
  }
  return total;
}

inline float inverse_rms(const float* x, std::size_t n, float epsilon) {
  return 1.0F / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + epsilon);
}

inline void rms_norm(const float* x, const float* weight, float* out, std::size_t n,
                     float epsilon) {
  const float inverse = inverse_rms(x, n, epsilon);
  for (std::size_t i = 0; i < n; i++) {
    out[i] = x[i] * inverse * weight[i];
  }
}

inline void rms_norm_back(const float* x, const float* weight, const float* gradient,
                          float* x_gradient, std::size_t n, float epsilon) {
  // d/dx of x w / rms:  (w g - x (x . w g) / (n rms^2)) / rms
  const float inverse = inverse_rms(x, n, epsilon);
  Vec sums{};
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sums += load(x + i) * load(weight + i) * load(gradient + i);
  }
  float projection = sum(sums);
  for (; i < n; i++) {
    projection += x[i] * weight[i] * gradient[i];
  }
  const float along = projection * inverse * inverse / static_cast<float>(n);
  for (std::size_t j = 0; j < n; j++) {
    x_gradient[j] += inverse * (weight[j] * gradient[j] - along * x[j]);
  }
}

// A field in the wrong place does not compile; of one left out g++ warns.
constexpr Table make_table(isa::Level level) {
  return {.level = level,
          .panel = kPanel,
          .pack = pack,
          .multiply = multiply,
          .softmax = softmax,
          .exponentials = exponentials,
          .softmax_back = softmax_back,
          .swiglu = swiglu,
          .swiglu_back = swiglu_back,
          .geglu = geglu,
          .geglu_back = geglu_back,
          .rms_norm = rms_norm,
          .rms_norm_back = rms_norm_back,
          .dot = dot};
}

}  // namespace
}  // namespace cqkv::dense
