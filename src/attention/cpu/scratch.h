// The memory that tasks of an attention call work in, one Scratch a thread, carved from one buffer.
// How a call is cut into tasks is attention/plan/plan.h. Internal to the attention folders.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#include "attention/attention.h"
#include "attention/plan/plan.h"

namespace cqkv {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
inline constexpr std::size_t kAlignment = 64;

// Memory that grows, aligned for vectors; contents are lost when it grows.
class AlignedBuffer {
 public:
  bool reserve(std::size_t bytes) {
    if (bytes <= size_) {
      return true;
    }
    data_.reset();  // before the new one, so that both need not fit
    data_.reset(static_cast<std::uint8_t*>(
        ::operator new (bytes, std::align_val_t{kAlignment}, std::nothrow)));
    size_ = data_ == nullptr ? 0 : bytes;
    return data_ != nullptr;
  }

  std::uint8_t* data() { return data_.get(); }

 private:
  struct Deleter {
    void operator()(std::uint8_t* data) const {
      ::operator delete (data, std::align_val_t{kAlignment});
    }
  };

  std::unique_ptr<std::uint8_t, Deleter> data_;
  std::size_t size_ = 0;
};

// Hands out consecutive aligned arrays; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::uint8_t* base) : base_(base) {}

  template <typename T>
  T* take(std::size_t n) {
    T* result = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset_);
    offset_ += (n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return result;
  }

  std::size_t used() const { return offset_; }

 private:
  std::uint8_t* base_;
  std::size_t offset_ = 0;
};

// The online softmax of some rows: maxima, sums and outputs [rows, channels].
struct SoftmaxState {
  float* maxima = nullptr;
  float* sums = nullptr;
  float* out = nullptr;

  void take(Carver& carver, std::size_t n_rows, std::size_t n_channels) {
    maxima = carver.take<float>(n_rows);
    sums = carver.take<float>(n_rows);
    out = carver.take<float>(n_rows * n_channels);
  }

  void clear(int n_rows, int n_channels) const {
    std::fill_n(maxima, n_rows, kMinusInfinity);
    std::fill_n(sums, n_rows, 0.0F);
    std::fill_n(out, static_cast<std::size_t>(n_rows) * n_channels, 0.0F);
  }

  // The rows of KV head number `head` of a task.
  SoftmaxState at(int head, int n_rows, int n_channels) const {
    const std::size_t row = static_cast<std::size_t>(head) * n_rows;
    return {maxima + row, sums + row, out + row * n_channels};
  }
};

// The codes of one group of a block as the integer kernels read them.
inline std::size_t unpacked_group_bytes(int code_bits) {
  return kBlockCells * (code_bits > 8 ? sizeof(std::uint16_t) : 1);
}

// The working memory of one thread.
struct Scratch {
  float* queries = nullptr;  // [kv_per_task, tile_rows, head_dim_k]
  SoftmaxState total;        // [kv_per_task, tile_rows]
  SoftmaxState part;
  float* scores = nullptr;      // [chunk_blocks, tile_rows, 64]
  float* rescale = nullptr;     // [chunk_blocks, tile_rows]
  float* mask = nullptr;        // [chunk_blocks, tile_queries, 64]
  float* exact_mask = nullptr;  // [tile_queries, 64] of the cells seen exactly

  // Steps in floats.
  float* keys = nullptr;           // [head_dim_k, 64]
  float* values = nullptr;         // [64, value_stride]
  float* rows = nullptr;           // [64, head_dim_k], plain keys before transposition
  float* sum_rows = nullptr;       // [64, sum_stride], keys to be summed
  std::uint16_t* codes = nullptr;  // [64]
  float* cosines = nullptr;        // [head_dim_k / 2, 64]
  float* sines = nullptr;

  // Steps in bytes.
  float* pairs = nullptr;          // [kv_per_task, tile_rows, 2, padded_pairs]: scaled queries
  float* factors = nullptr;        // [kv_per_task, tile_rows]: what undoes the scale
  float* chunk_factors = nullptr;  // [chunk_blocks, tile_rows]: the same for every block
  std::uint32_t* packed_rows = nullptr;   // [chunk_blocks, tile_rows, padded_pairs]
  float* row_angles = nullptr;            // [chunk_blocks, 2, padded_pairs]
  float* placed_angles = nullptr;         // [2, padded_pairs], of one KV head and block
  float* weights = nullptr;               // [chunk_blocks, tile_rows]
  std::uint8_t* probabilities = nullptr;  // [chunk_blocks, tile_rows, 64]
  std::uint8_t* unpacked = nullptr;       // [chunk_blocks, groups, 64] of 8 or 16 bits
  // Sums over keys: the same of all KV heads of the task, [chunk_blocks, KV head, row].
  float* kept_weights = nullptr;
  float* kept_rescale = nullptr;
  std::uint8_t* kept_probabilities = nullptr;
  std::uint8_t* sum_codes = nullptr;  // [chunk_blocks, groups to be summed, 64]
  std::uint8_t* kernel = nullptr;

  Scratch(const AttentionCall& call, const Plan& plan, Carver& carver) {
    const std::size_t rows_of_task = static_cast<std::size_t>(plan.kv_per_task) * plan.tile_rows;
    const std::size_t chunk_rows = static_cast<std::size_t>(plan.chunk_blocks) * plan.tile_rows;
    const std::size_t tile_masks = static_cast<std::size_t>(plan.tile_queries) * kBlockCells;
    queries = carver.take<float>(rows_of_task * call.head_dim_k);
    total.take(carver, rows_of_task, plan.channels);
    part.take(carver, rows_of_task, plan.channels);
    scores = carver.take<float>(chunk_rows * kBlockCells);
    rescale = carver.take<float>(chunk_rows);
    mask = carver.take<float>(plan.chunk_blocks * tile_masks);
    exact_mask = carver.take<float>(tile_masks);
    keys = carver.take<float>(static_cast<std::size_t>(call.head_dim_k) * kBlockCells);
    values = carver.take<float>(static_cast<std::size_t>(plan.value_stride) * kBlockCells);
    rows = carver.take<float>(static_cast<std::size_t>(call.head_dim_k) * kBlockCells);
    sum_rows = carver.take<float>(static_cast<std::size_t>(plan.sum_stride) * kBlockCells);
    codes = carver.take<std::uint16_t>(kBlockCells);
    cosines = carver.take<float>(static_cast<std::size_t>(call.head_dim_k) / 2 * kBlockCells);
    sines = carver.take<float>(static_cast<std::size_t>(call.head_dim_k) / 2 * kBlockCells);
    take_bytes(call, plan, carver);
  }

 private:
  void take_bytes(const AttentionCall& call, const Plan& plan, Carver& carver);
  void take_byte_sums(const AttentionCall& call, const Plan& plan, Carver& carver);
};

}  // namespace cqkv
