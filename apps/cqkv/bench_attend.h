// Who computes the attentions of the operator benchmark: ours, over codes, and ggml's
// FLASH_ATTN_EXT on its CPU backend over a cache laid out as llama.cpp's. Both run in one
// OpenMP team, so that neither leaves threads that disturb the other.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "bench_case.h"
#include "device/omp_parallel.h"

namespace cqkv::app {

/// One implementation on one problem. The shape, inputs and codes that it was made of must
/// outlive it.
class BenchAttention {
 public:
  virtual ~BenchAttention() = default;
  BenchAttention(const BenchAttention&) = delete;
  BenchAttention(BenchAttention&&) = delete;
  BenchAttention& operator=(const BenchAttention&) = delete;
  BenchAttention& operator=(BenchAttention&&) = delete;

  virtual std::string impl() const = 0;  ///< "cqkv", "ggml"

  virtual std::string type() const = 0;  ///< Of the cache: "8c8b", "f16".

  /// Of the whole cache, keys and values: what one call reads at least.
  virtual std::size_t cache_bytes() const = 0;

  virtual void set_n_threads(int n_threads) = 0;

  virtual Status run() = 0;

  /// [stream, query, head, head_dim] of the last run.
  virtual const float* out() const = 0;

 protected:
  BenchAttention() = default;
};

/// attend() over codes, one call a stream.
class CodedAttention final : public BenchAttention {
 public:
  /// `bytes`: by the centroids as bytes where the kernels and the codebook allow it, as the
  /// device does; else in floats.
  CodedAttention(const BenchShape& shape, const BenchInputs& inputs, const BenchCodes& codes,
                 bool bytes);

  std::string impl() const override { return "cqkv"; }

  std::string type() const override;

  /// KV heads whose keys are summed for the values.
  int n_key_heads() const { return codes_.n_key_heads(); }

  std::size_t cache_bytes() const override { return codes_.bytes(); }

  void set_n_threads(int n_threads) override { parallel_.set_n_threads(n_threads); }

  Status run() override;

  const float* out() const override { return out_.data(); }

  /// What keys and values are used as: "bytes", "floats" or "mixed".
  std::string path() const;

 private:
  AttentionCall call(int stream);

  const BenchShape& shape_;
  const BenchInputs& inputs_;
  const BenchCodes& codes_;
  RopeTable rope_;
  TensorCodec keys_;
  TensorCodec values_;
  std::vector<float> out_;
  device::OmpParallelFor parallel_;
  AttentionWorkspace workspace_;
};

/// attend() over random codes of all layers of a codebook, one after the other: so that the tables
/// of one layer drive those of the others out of the processor's caches, as in a model.
class ModelAttention final : public BenchAttention {
 public:
  ModelAttention(const BenchShape& shape, const BenchInputs& inputs, const Codebook& codebook);

  std::string impl() const override { return "cqkv"; }

  std::string type() const override { return name_; }

  std::size_t cache_bytes() const override;

  void set_n_threads(int n_threads) override;

  Status run() override;

  const float* out() const override { return layers_.back()->out(); }

  /// As CodedAttention::path, "mixed" also if layers differ.
  std::string path() const;

 private:
  std::string name_;
  std::vector<std::unique_ptr<BenchCodes>> codes_;
  std::vector<std::unique_ptr<CodedAttention>> layers_;
};

/// ggml's operator over rows of the type "f32", "f16", "q8_0" or "q4_0".
class GgmlAttention final : public BenchAttention {
 public:
  /// kInvalidArgument for a type that is not known or whose blocks do not divide heads.
  static Status check_type(const std::string& type, int head_dim);

  /// As check_type; kResourceExhausted if there is not enough memory.
  static Result<std::unique_ptr<GgmlAttention>> create(const BenchShape& shape,
                                                       const BenchInputs& inputs,
                                                       const std::string& type);

  ~GgmlAttention() override;
  GgmlAttention(const GgmlAttention&) = delete;
  GgmlAttention(GgmlAttention&&) = delete;
  GgmlAttention& operator=(const GgmlAttention&) = delete;
  GgmlAttention& operator=(GgmlAttention&&) = delete;

  /// The cache holds what these codes stand for, keys rotated.
  void fill(const BenchCodes& codes);

  std::string impl() const override { return "ggml"; }

  std::string type() const override;

  std::size_t cache_bytes() const override;

  void set_n_threads(int n_threads) override;

  Status run() override;

  const float* out() const override;

 private:
  struct Graph;

  GgmlAttention(const BenchShape& shape, const BenchInputs& inputs);

  const BenchShape& shape_;
  const BenchInputs& inputs_;
  std::unique_ptr<Graph> graph_;
};

}  // namespace cqkv::app
