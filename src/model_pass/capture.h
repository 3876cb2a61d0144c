// Keys and values of any model that libllama runs: one forward pass per sequence,
// watched by libllama's evaluation callback. No gradients here; see gradient.h.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>

#include "cqkv/status.h"

#include "model_pass/kv_rows.h"

namespace cqkv {

/// Runs a model and delivers what it stores in its cache.
///
/// Rows are taken where the graph stores them (SET_ROWS into cache_k_l<il> and
/// cache_v_l<il>), so they are what a KV device would code, whatever the
/// architecture computes before, and from the same graphs (graph/cache_store.h). Keys
/// are rotated back by the inverse of their ROPE node; layers without RoPE deliver keys
/// as stored.
///
/// Numerics: rows are f32, as computed by libllama (quantized weights make it round
/// activations to 8 bits); rotating back adds a few eps.
/// Threads: one run at a time; owns its model and context.
class KvCapture {
 public:
  /// Loads the model on the CPU (memory-mapped) with a context of n_ctx tokens.
  ///
  /// @param wants_keys  false: values only, from models too whose keys cannot be rotated back.
  /// @return kNotFound or kCorrupt if libllama cannot load it; its reason is in its log.
  static Result<KvCapture> load(const std::string& model_path, int n_ctx, int n_threads,
                                bool wants_keys = true);

  KvCapture(KvCapture&&) noexcept;
  KvCapture& operator=(KvCapture&&) noexcept;
  KvCapture(const KvCapture&) = delete;
  KvCapture& operator=(const KvCapture&) = delete;
  ~KvCapture();

  /// Runs one sequence from position 0 and delivers, layer by layer and in pieces of
  /// at most 512 tokens, all its keys and values. Every row was checked to be finite.
  ///
  /// @param tokens  2 to n_ctx tokens of the vocabulary, BOS included if wanted.
  /// @param cancel  may be nullptr; once true, the run ends with kCancelled.
  /// @return kUnsupported for keys that cannot be rotated back (read_cache_store); kCorrupt, naming
  /// layer and token, for values not finite.
  Status run(std::span<const Token> tokens, const KvSink& sink,
             const std::atomic<bool>* cancel = nullptr);

 private:
  struct State;

  explicit KvCapture(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace cqkv
