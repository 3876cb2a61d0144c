// Tiny random models of any architecture that libllama knows, made in memory: the
// metadata is given, libllama asks for the tensors that the architecture has, and
// each is filled from its name. There is no file and no list of tensors here; a model
// as a file, for what reads files, is tests/model_pass/tiny_model.h.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <ggml-backend.h>

#include "llama/handles.h"

namespace cqkv::testing {

/// One metadata key; without the architecture's prefix, except for "tokenizer." keys.
struct MetadataKey {
  std::string name;
  std::variant<std::uint32_t, float, bool, std::string, std::vector<std::uint32_t>> value;
};

struct ModelSpec {
  std::string architecture;
  int n_layers = 2;
  int n_embd = 128;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 32;
  int n_ff = 96;
  float rope_factor = 1.0F;            ///< Frequency factors rise from 1 to this.
  float q_norm = 1.0F;                 ///< Weights of query norms, about.
  std::vector<MetadataKey> keys = {};  ///< Further keys; they replace those from above.
  std::uint64_t seed = 7;

  static constexpr int kVocab = 64;
};

/// The model with its layers on `device`, or on the CPU alone if null. Equal specs give
/// equal weights. Null if libllama refuses it; its log says why.
LlamaModel make_model(const ModelSpec& spec, ggml_backend_dev_t device);

}  // namespace cqkv::testing
