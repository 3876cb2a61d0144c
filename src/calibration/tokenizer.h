// libllama's tokenizer of a model, loaded without the weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cqkv/status.h"

#include "llama/handles.h"
#include "model_pass/kv_rows.h"

namespace cqkv {

class Tokenizer {
 public:
  /// @return kNotFound or kCorrupt if libllama cannot load the vocabulary.
  static Result<Tokenizer> load(const std::string& model_path);

  /// Tokens of `text` alone: no BOS, no EOS, and text that looks like a special token
  /// ("<|im_end|>") stays text. Bytes that are not UTF-8 become replacement characters.
  Result<std::vector<Token>> tokenize(std::string_view text) const;

  /// A conversation as the model's chat template has it: turns[0] is the user's, turns[1] the
  /// assistant's, and so on. Empty if the model has no template, or none that libllama can write.
  std::string chat(const std::vector<std::string>& turns) const;

  /// Tokens of what `chat` returns, whose special tokens are such.
  Result<std::vector<Token>> tokenize_chat(std::string_view text) const;

  /// Whether the model puts `bos()` before every text.
  bool adds_bos() const;

  Token bos() const;

  int n_vocab() const;

 private:
  explicit Tokenizer(LlamaModel model) : model_(std::move(model)) {}

  Result<std::vector<Token>> tokenize(std::string_view text, bool specials) const;

  LlamaModel model_;
};

}  // namespace cqkv
