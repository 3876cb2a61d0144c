// A tiny random model file, written by the tests themselves: llama, qwen2, qwen3 or
// gemma3, f32 weights, a byte vocabulary of SentencePiece kind that any text fits.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model_pass/kv_rows.h"

namespace cqkv::testing {

struct TinyModel {
  std::string architecture = "llama";
  int n_layers = 2;
  int n_embd = 32;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 8;
  int n_ff = 48;
  bool biases = false;
  bool tied_output = true;
  bool freq_factors = false;
  std::string rope_scaling;                 ///< Empty: no key.
  std::vector<std::int32_t> rope_sections;  ///< Four, for qwen2vl; empty: no key.
  float rope_factor = 0.0F;                 ///< 0: no key.
  int window = 0;                           ///< The sliding window; 0: no key.
  int window_period = 0;        ///< All layers but the last of so many have it; 0: no key.
  bool listed_windows = false;  ///< Write the period as a list instead.
  float logit_softcap = 0.0F;   ///< 0: no key.
  bool add_bos = true;
  std::string chat_template;  ///< Empty: no key.
  bool with_experts = false;
  int wrong_columns = 0;        ///< Added to the width of blk.1.ffn_down.weight.
  std::string left_out;         ///< A tensor not to write.
  float nan_in_layer_1 = 0.0F;  ///< Not 0: put a NaN into blk.1.attn_k.weight.
  std::uint64_t seed = 7;

  static constexpr int kVocab = 3 + 256 + 1;

  /// Heads wider than n_embd / n_heads, with norms.
  static TinyModel qwen3();

  /// The same with one KV head; layers 0 and 2 with a window of 5 tokens, 1 without.
  static TinyModel gemma3();

  bool has_head_norms() const {
    return architecture == "qwen3" || architecture == "gemma3" || architecture == "maincoder";
  }

  bool has_post_norms() const { return architecture == "gemma3"; }

  /// Writes the file into the test's temporary folder and returns its path.
  std::string write(const std::string& name) const;
};

/// The folder for files of the running test; removed when the program ends.
std::filesystem::path temporary_folder();

/// n tokens of the byte vocabulary, drawn from `seed`.
std::vector<Token> random_tokens(std::size_t n, std::uint64_t seed);

}  // namespace cqkv::testing
