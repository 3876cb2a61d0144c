// Owners of libllama's objects, and its log caught in memory: the library prints
// nothing itself, but what libllama logged last explains most of its failures.
#pragma once

#include <memory>
#include <string>

#include <llama.h>

namespace cqkv::eval {

struct LlamaFreer {
  void operator()(llama_model* model) const { llama_model_free(model); }

  void operator()(llama_context* context) const { llama_free(context); }
};

using ModelHandle = std::unique_ptr<llama_model, LlamaFreer>;
using ContextHandle = std::unique_ptr<llama_context, LlamaFreer>;

/// Catches the log of libllama and ggml from now on, for the whole process; with
/// `echo` it goes on to stderr as well. Not safe beside other libllama calls.
void catch_llama_log(bool echo);

/// The last error lines caught since the previous call, joined by "; ", or "".
std::string take_llama_errors();

}  // namespace cqkv::eval
