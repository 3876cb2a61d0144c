// One batch of all tokens, the softmax in double; see llama_loss.h.
#include "model_pass/llama_loss.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "llama/handles.h"

namespace cqkv::testing {

double llama_loss(const std::string& path, std::vector<Token> tokens) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  const LlamaModel model(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
  EXPECT_NE(model, nullptr);
  const auto n = static_cast<std::int32_t>(tokens.size());
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(std::max(tokens.size(), std::size_t{256}));
  params.n_batch = params.n_ctx;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = GGML_TYPE_F32;
  const LlamaContext context(llama_init_from_model(model.get(), params));
  EXPECT_NE(context, nullptr);
  llama_batch batch = llama_batch_get_one(tokens.data(), n);
  std::vector<std::int8_t> wanted(tokens.size(), 1);
  batch.logits = wanted.data();
  EXPECT_EQ(llama_decode(context.get(), batch), 0);
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  double loss = 0.0;
  for (std::int32_t t = 0; t + 1 < n; t++) {
    const float* logits = llama_get_logits_ith(context.get(), t);
    double sum = 0.0;
    for (int i = 0; i < n_vocab; i++) {
      sum += std::exp(static_cast<double>(logits[i]));
    }
    loss += std::log(sum) - logits[tokens[t + 1]];
  }
  return loss / (n - 1);
}

}  // namespace cqkv::testing
