// The table of functions that dense.h calls, one per instruction set. No function is defined
// here: the files compiled for an instruction set include this header, and an inline
// function compiled there could be used by the linker everywhere.
#pragma once

#include <cstddef>

#include "isa/level.h"

namespace cqkv::dense {

/// A matrix [rows, columns] with any strides, in floats.
struct View {
  const float* data = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t column_stride = 1;
};

/// The right-hand side [n_inner, n_columns] of products, in panels of Table::panel
/// columns: [n_panels, n_inner, panel], padded with zeros.
struct PackedView {
  const float* data = nullptr;
  std::size_t n_inner = 0;
  std::size_t n_columns = 0;
};

/// A part of the right-hand side. Columns begin at a panel and, unless they are the last
/// ones, end at one.
struct PackPart {
  std::size_t first_row = 0;
  std::size_t n_rows = 0;
  std::size_t first_column = 0;
  std::size_t n_columns = 0;
};

/// One product: c = a b, or c += a b.
struct Product {
  View a;  // [n_rows, n_inner]
  std::size_t n_rows = 0;
  PackedView b;               // [at least n_inner, at least n_columns]
  std::size_t n_inner = 0;    // 0: b.n_inner
  std::size_t n_columns = 0;  // 0: b.n_columns
  float* c = nullptr;         // [n_rows, n_columns]
  std::size_t c_stride = 0;
  bool accumulate = false;
};

/// Functions of one instruction set. Numerics: f32 sums in an order that depends on
/// the instruction set, never on threads or on the rows beside; `exp` is within 2 ulp.
struct Table {
  isa::Level level;
  std::size_t panel;  ///< Columns of a panel.

  /// Packs a part of a right-hand side of `n_inner` rows from `values` [part.n_rows,
  /// part.n_columns]. Different parts may be packed at once.
  void (*pack)(float* packed, std::size_t n_inner, const PackPart& part, View values);

  void (*multiply)(const Product& product);

  /// scores[i] = exp(scale * scores[i] - lse), lse the logarithm of the sum of the
  /// exponentials, which is returned.
  float (*softmax)(float* scores, std::size_t n, float scale);

  /// scores[i] = exp(scale * scores[i] - lse), lse known.
  void (*exponentials)(float* scores, std::size_t n, float scale, float lse);

  /// gradients[i] = scale * weights[i] * (gradients[i] - delta)
  void (*softmax_back)(const float* weights, float* gradients, std::size_t n, float delta,
                       float scale);

  /// out[i] = silu(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, float* out, std::size_t n);

  /// gate_gradient and up_gradient from the gradient by swiglu's output; may overlap gate and up.
  void (*swiglu_back)(const float* gate, const float* up, const float* gradient,
                      float* gate_gradient, float* up_gradient, std::size_t n);

  /// The same with GELU in its tanh form: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
  void (*geglu)(const float* gate, const float* up, float* out, std::size_t n);
  void (*geglu_back)(const float* gate, const float* up, const float* gradient,
                     float* gate_gradient, float* up_gradient, std::size_t n);

  /// out = x / rms(x) * weight, rms with epsilon under the root.
  void (*rms_norm)(const float* x, const float* weight, float* out, std::size_t n, float epsilon);

  /// x_gradient += the gradient by x of rms_norm, given that by its output.
  void (*rms_norm_back)(const float* x, const float* weight, const float* gradient,
                        float* x_gradient, std::size_t n, float epsilon);

  float (*dot)(const float* a, const float* b, std::size_t n);
};

}  // namespace cqkv::dense
