// What the cache model (cache_model.h) drives: the calls of one cache of a fixed, small shape.
// Drivers are KvCache itself (kv_cache_driver.h) and the ggml device around it
// (tests/device/device_driver.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "cache/exact_window.h"

namespace cqkv::testing {

inline constexpr int kModelLayers = 2;
inline constexpr int kModelKvHeads = 2;
inline constexpr int kModelHeads = 4;
inline constexpr int kModelHeadDim = 32;
inline constexpr int kModelChannels = kModelKvHeads * kModelHeadDim;
inline constexpr int kModelCells = 128;  // of one stream: two blocks
inline constexpr WindowSpec kModelWindow{6, 2};

/// Tokens that are stored and attend, all of one stream.
struct ModelStep {
  int stream = 0;
  std::vector<std::int32_t> positions;
  std::vector<std::size_t> cells;   ///< Over all streams.
  std::vector<std::uint16_t> mask;  ///< f16 [token, kModelCells], of the stream's cells.
  std::vector<float> queries;       ///< [token, kModelHeads, kModelHeadDim]
};

/// Keys have NeoX rotary embeddings with ggml's default parameters; scores are scaled by
/// 1 / sqrt(kModelHeadDim); attention decodes to floats, whose roundings hide no wrong row.
class CacheDriver {
 public:
  virtual ~CacheDriver() = default;
  CacheDriver(const CacheDriver&) = delete;
  CacheDriver& operator=(const CacheDriver&) = delete;
  CacheDriver(CacheDriver&&) = delete;
  CacheDriver& operator=(CacheDriver&&) = delete;

  /// Layer by layer: store_keys, store_values, attend. `rows` are [token, kModelChannels], keys
  /// rotated. After a failure the step is over, as after `end`.
  virtual void begin(const ModelStep& step) = 0;
  virtual Status store_keys(int layer, const float* rows) = 0;
  virtual Status store_values(int layer, const float* rows) = 0;
  virtual Status attend(int layer) = 0;
  virtual void end() = 0;

  /// [token, kModelHeads, kModelHeadDim] of the last attend.
  virtual const float* out(int layer) const = 0;

  /// Of all cells.
  virtual Status shift(std::span<const std::int32_t> amounts) = 0;

  virtual void copy_stream(KvKind kind, int layer, int from, int to) = 0;

  /// Saved rows; what cannot be saved or restored must not be usable.
  virtual std::size_t row_bytes() const = 0;
  virtual void read_row(KvKind kind, int layer, std::size_t cell, std::span<std::uint8_t> row) = 0;
  virtual void write_row(KvKind kind, int layer, std::size_t cell,
                         std::span<const std::uint8_t> row) = 0;

  virtual void clear() = 0;

  virtual const ExactWindow& window() const = 0;

 protected:
  CacheDriver() = default;
};

/// A cache of n_streams streams with exact rows for so many sequences each. The codebook outlives
/// it.
using MakeDriver = std::unique_ptr<CacheDriver> (*)(const Codebook& codebook, int n_streams,
                                                    int pool_sequences);

}  // namespace cqkv::testing
