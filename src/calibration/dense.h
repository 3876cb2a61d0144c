// Dense f32 arithmetic for forward and backward passes: matrix products on packed
// right-hand sides, softmax, SiLU, RMS norm, rotation. One table of functions per
// instruction set; ggml's f32 products reach a third of this processor's peak, these
// more than twice that (docs/design/gradients.md has the figures). Threads are the caller's
// business: every function works on the rows it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cqkv::dense {

/// A float array aligned to cache lines, not initialised.
class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(std::size_t size) { resize(size); }

  /// Contents are lost if the size grows.
  void resize(std::size_t size) {
    if (size > capacity_) {
      data_.reset(static_cast<float*>(::operator new(size * sizeof(float), kAlignment)));
      capacity_ = size;
    }
    size_ = size;
  }

  float* data() { return data_.get(); }

  const float* data() const { return data_.get(); }

  std::size_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};

  struct Delete {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };

  std::unique_ptr<float, Delete> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

/// A matrix [rows, columns] with any strides, in floats: a transposed view swaps them.
struct View {
  const float* data = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t column_stride = 1;

  View transposed() const { return {data, column_stride, row_stride}; }

  View rows_from(std::size_t row) const {
    return {data + static_cast<std::ptrdiff_t>(row) * row_stride, row_stride, column_stride};
  }
};

/// The right-hand side [n_inner, n_columns] of products, in panels of `panel` columns:
/// [n_panels, n_inner, panel], padded with zeros.
struct Packed {
  Buffer data;
  std::size_t n_inner = 0;
  std::size_t n_columns = 0;

  void resize(std::size_t inner, std::size_t columns, std::size_t panel) {
    n_inner = inner;
    n_columns = columns;
    data.resize((columns + panel - 1) / panel * panel * inner);
  }
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
  const Packed* b = nullptr;  // [at least n_inner, at least n_columns]
  std::size_t n_inner = 0;    // 0: b->n_inner
  std::size_t n_columns = 0;  // 0: b->n_columns
  float* c = nullptr;         // [n_rows, n_columns]
  std::size_t c_stride = 0;
  bool accumulate = false;
};

/// Functions of one instruction set. Numerics: f32 sums in an order that depends on
/// the instruction set, never on threads or on the rows beside; `exp` is within 2 ulp.
struct Table {
  const char* name;
  std::size_t panel;  ///< Columns of a panel of Packed.

  /// Packs a part of b (already sized) from `values` [part.n_rows, part.n_columns].
  /// Different parts may be packed at once.
  void (*pack)(Packed& b, const PackPart& part, View values);

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

  /// out = x / rms(x) * weight, rms with epsilon under the root.
  void (*rms_norm)(const float* x, const float* weight, float* out, std::size_t n, float epsilon);

  /// x_gradient += the gradient by x of rms_norm, given that by its output.
  void (*rms_norm_back)(const float* x, const float* weight, const float* gradient,
                        float* x_gradient, std::size_t n, float epsilon);

  float (*dot)(const float* a, const float* b, std::size_t n);
};

/// The best table that this processor can run, or the one CQKV_FORCE_ISA names if it
/// is among them ("avx512", "avx2"; anything else means the portable one).
const Table& table();

/// All tables that this processor can run, the portable one last, for tests.
std::size_t n_tables();
const Table& table_at(std::size_t index);

}  // namespace cqkv::dense
