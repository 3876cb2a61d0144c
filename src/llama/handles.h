// Owning handles over libllama's and ggml's C objects. No logic here.
#pragma once

#include <memory>

#include <ggml.h>
#include <gguf.h>
#include <llama.h>

namespace cqkv {

struct LlamaModelFree {
  void operator()(llama_model* model) const { llama_model_free(model); }
};

struct LlamaContextFree {
  void operator()(llama_context* context) const { llama_free(context); }
};

struct GgmlContextFree {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

struct GgufContextFree {
  void operator()(gguf_context* context) const { gguf_free(context); }
};

using LlamaModel = std::unique_ptr<llama_model, LlamaModelFree>;
using LlamaContext = std::unique_ptr<llama_context, LlamaContextFree>;
using GgmlContext = std::unique_ptr<ggml_context, GgmlContextFree>;
using GgufContext = std::unique_ptr<gguf_context, GgufContextFree>;

}  // namespace cqkv
