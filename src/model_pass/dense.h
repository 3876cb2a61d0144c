// Dense f32 arithmetic for forward and backward passes: matrix products on packed
// right-hand sides, softmax, gated units, RMS norm. One table of functions per
// instruction set; ggml's f32 products reach a third of this processor's peak, these
// more than twice that (docs/design/calibration.md has the figures). Threads are the caller's
// business: every function works on the rows it is given.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "model_pass/dense_table.h"

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

inline View transposed(View view) {
  return {view.data, view.column_stride, view.row_stride};
}

/// Owns a right-hand side.
struct Packed {
  Buffer data;
  std::size_t n_inner = 0;
  std::size_t n_columns = 0;

  void resize(std::size_t inner, std::size_t columns, std::size_t panel) {
    n_inner = inner;
    n_columns = columns;
    data.resize((columns + panel - 1) / panel * panel * inner);
  }

  PackedView view() const { return {data.data(), n_inner, n_columns}; }
};

/// The table for active_isa() (cqkv/isa.h).
const Table& table();

/// The best table at or below `level` (isa/select.h).
const Table& table_for(isa::Level level);

/// All tables that this processor can run, best first; the last is the portable one, of
/// level scalar.
std::vector<const Table*> supported_tables();

}  // namespace cqkv::dense
