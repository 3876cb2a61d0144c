// Tokenizer on top of a vocabulary-only model; see tokenizer.h.
#include "calibration/tokenizer.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

namespace cqkv {

Result<Tokenizer> Tokenizer::load(const std::string& model_path) {
  std::error_code error;
  if (!std::filesystem::exists(model_path, error)) {
    return Status(StatusCode::kNotFound, model_path + ": no such model file");
  }
  llama_model_params params = llama_model_default_params();
  ggml_backend_dev_t no_devices[] = {nullptr};
  params.devices = no_devices;
  // The default prints dots.
  params.progress_callback = [](float, void*) { return true; };
  params.vocab_only = true;
  LlamaModel model(llama_model_load_from_file(model_path.c_str(), params));
  if (model == nullptr) {
    return corrupt(model_path + ": libllama cannot load its vocabulary; its log says why");
  }
  return Tokenizer(std::move(model));
}

std::string Tokenizer::chat(const std::vector<std::string>& turns) const {
  const char* model_template = llama_model_chat_template(model_.get(), nullptr);
  if (model_template == nullptr) {
    return {};
  }
  std::vector<llama_chat_message> messages;
  std::size_t n_bytes = 256;
  for (const std::string& turn : turns) {
    messages.push_back({messages.size() % 2 == 0 ? "user" : "assistant", turn.c_str()});
    n_bytes += 2 * turn.size() + 64;
  }
  std::string text(n_bytes, '\0');
  const auto apply = [&] {
    return llama_chat_apply_template(model_template, messages.data(), messages.size(), false,
                                     text.data(), static_cast<std::int32_t>(text.size()));
  };
  std::int32_t n = apply();
  if (n > static_cast<std::int32_t>(text.size())) {
    text.resize(static_cast<std::size_t>(n));
    n = apply();
  }
  text.resize(static_cast<std::size_t>(std::max(n, 0)));
  return text;
}

Result<std::vector<Token>> Tokenizer::tokenize(std::string_view text) const {
  return tokenize(text, false);
}

Result<std::vector<Token>> Tokenizer::tokenize_chat(std::string_view text) const {
  return tokenize(text, true);
}

Result<std::vector<Token>> Tokenizer::tokenize(std::string_view text, bool specials) const {
  if (text.empty()) {
    return std::vector<Token>{};
  }
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max() / 2)) {
    return invalid_argument("tokenizer: got a text of " + std::to_string(text.size()) +
                            " bytes, want at most 1 GiB");
  }
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  const auto n_bytes = static_cast<std::int32_t>(text.size());
  // A token is at least one byte, but for a few that the vocabulary puts in front.
  std::vector<Token> tokens(text.size() + 8);
  try {
    const auto capacity = static_cast<std::int32_t>(tokens.size());
    std::int32_t n =
        llama_tokenize(vocab, text.data(), n_bytes, tokens.data(), capacity, false, specials);
    if (n < 0 && n != std::numeric_limits<std::int32_t>::min()) {
      tokens.resize(static_cast<std::size_t>(-n));
      n = llama_tokenize(vocab, text.data(), n_bytes, tokens.data(), -n, false, specials);
    }
    if (n < 0) {
      return Status(StatusCode::kInternal, "tokenizer: libllama cannot tokenize the text");
    }
    tokens.resize(static_cast<std::size_t>(n));
  } catch (const std::exception& error) {
    return Status(StatusCode::kInternal, std::string("tokenizer: ") + error.what());
  }
  return tokens;
}

bool Tokenizer::adds_bos() const {
  return llama_vocab_get_add_bos(llama_model_get_vocab(model_.get()));
}

Token Tokenizer::bos() const {
  return llama_vocab_bos(llama_model_get_vocab(model_.get()));
}

int Tokenizer::n_vocab() const {
  return llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
}

}  // namespace cqkv
