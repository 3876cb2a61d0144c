// TokenStream reads one file lazily; read_sequences takes turns over the streams.
#include "calibration/text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "calibration/utf8.h"

namespace cqkv {
namespace {

// libllama's SentencePiece tokenizer takes time quadratic in the length of its text:
// 0.03 s for 16 KiB, 6 s for 256 KiB.
constexpr std::size_t kPieceBytes = std::size_t{32} << 10U;

std::vector<std::string> split_fields(std::string_view text) {
  std::vector<std::string> fields;
  while (true) {
    const auto comma = text.find(',');
    fields.emplace_back(text.substr(0, comma));
    if (comma == std::string_view::npos) {
      return fields;
    }
    text.remove_prefix(comma + 1);
  }
}

// The tokens of one file, produced as they are asked for.
class TokenStream {
 public:
  TokenStream(const Tokenizer& tokenizer, std::string path, std::vector<std::string> fields,
              bool chat)
      : tokenizer_(&tokenizer),
        path_(std::move(path)),
        fields_(std::move(fields)),
        json_(path_.ends_with(".jsonl")),
        chat_(chat && json_ && !tokenizer.chat(fields_).empty()) {}

  Status open() {
    std::error_code error;
    if (std::filesystem::is_directory(path_, error)) {
      return io_error(path_ + ": is a folder, want a text file");
    }
    if (!std::filesystem::is_regular_file(path_, error)) {
      return {StatusCode::kNotFound, path_ + ": no such text file"};
    }
    file_.open(path_, std::ios::binary);
    if (!file_) {
      return io_error(path_ + ": cannot open for reading");
    }
    return {};
  }

  // Moves n tokens to the end of `out`, or none if the file has no n left.
  Status take(std::size_t n, std::vector<Token>& out, bool& taken) {
    while (tokens_.size() - used_ < n && !ended_) {
      CQKV_RETURN_IF_ERROR(read_piece());
    }
    taken = tokens_.size() - used_ >= n;
    if (taken) {
      const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(used_);
      out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(n));
      used_ += n;
    }
    return {};
  }

  std::size_t n_left() const { return tokens_.size() - used_; }

 private:
  Status read_piece() {
    std::string piece;
    std::string line;
    while (piece.size() < kPieceBytes && std::getline(file_, line)) {
      n_lines_++;
      CQKV_RETURN_IF_ERROR(append_line(line, piece));
    }
    if (file_.bad()) {
      return io_error(path_ + ": reading failed after line " + std::to_string(n_lines_));
    }
    ended_ = !file_;
    auto tokens = chat_ ? tokenizer_->tokenize_chat(piece) : tokenizer_->tokenize(piece);
    if (!tokens.ok()) {
      return {tokens.status().code(), path_ + ": " + tokens.status().message()};
    }
    tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(used_));
    used_ = 0;
    tokens_.insert(tokens_.end(), tokens->begin(), tokens->end());
    return {};
  }

  Status append_line(const std::string& line, std::string& piece) const {
    if (json_) {
      return append_document(line, piece);
    }
    piece += line;
    piece += file_.eof() ? "" : "\n";
    return {};
  }

  Status append_document(const std::string& line, std::string& piece) const {
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      return {};
    }
    const std::string where = path_ + ", line " + std::to_string(n_lines_) + ": ";
    // The JSON parser refuses bytes that are not UTF-8; the tokenizer would replace them.
    const auto document = nlohmann::json::parse(replace_invalid_utf8(line), nullptr, false);
    if (document.is_discarded() || !document.is_object()) {
      return corrupt(where + "want one JSON object a line, got '" + line.substr(0, 40) + "'");
    }
    std::vector<std::string> values;
    for (std::size_t i = 0; i < fields_.size(); i++) {
      const auto field = document.find(fields_[i]);
      if (field == document.end() || !field->is_string()) {
        return corrupt(where + "want a string field '" + fields_[i] + "', got " +
                       (field == document.end() ? "none" : field->type_name()) +
                       "; name the text's field with --json-field");
      }
      values.push_back(field->get<std::string>());
    }
    piece += chat_ ? tokenizer_->chat(values) : joined(values) + "\n\n";
    return {};
  }

  static std::string joined(const std::vector<std::string>& values) {
    std::string text = values.front();
    for (std::size_t i = 1; i < values.size(); i++) {
      text += "\n" + values[i];
    }
    return text;
  }

  const Tokenizer* tokenizer_;
  std::string path_;
  std::vector<std::string> fields_;
  bool json_;
  bool chat_;
  std::ifstream file_;
  std::size_t n_lines_ = 0;
  bool ended_ = false;
  std::vector<Token> tokens_;
  std::size_t used_ = 0;  // tokens_ before this were taken
};

Status check_options(const TextOptions& options) {
  if (options.files.empty()) {
    return invalid_argument("calibration texts: got no file, want at least one");
  }
  if (options.n_ctx < 2 || options.n_tokens < 2) {
    return invalid_argument("calibration: got " + std::to_string(options.n_tokens) +
                            " tokens in sequences of " + std::to_string(options.n_ctx) +
                            ", want at least 2 and 2");
  }
  if (options.json_field.empty()) {
    return invalid_argument("calibration texts: the JSON field's name is empty");
  }
  return {};
}

Status too_short(const std::vector<Sequence>& sequences, std::size_t n_left,
                 const TextOptions& options) {
  std::size_t n_got = 0;
  for (const auto& sequence : sequences) {
    n_got += sequence.tokens.size();
  }
  return invalid_argument(
      "calibration texts are too short: got " + std::to_string(n_got) +
      " tokens in whole sequences of " + std::to_string(options.n_ctx) + " and " +
      std::to_string(n_left) + " left over, want " + std::to_string(options.n_tokens) +
      (options.n_further == 0
           ? ""
           : " to learn from and " + std::to_string(options.n_further * options.n_ctx) +
                 " to choose rates on") +
      "; give more text or ask for fewer tokens");
}

// Says the last n tokens twice, in passages of n, n / 2, n or n / 4 by the number of the sequence.
void repeat_last(std::size_t n, std::size_t number, std::vector<Token>& tokens) {
  const std::size_t passage =
      std::max<std::size_t>(1, number % 2 == 0 ? n : n >> (number / 2 % 2 + 1));
  const std::vector<Token> once(tokens.end() - static_cast<std::ptrdiff_t>(n), tokens.end());
  tokens.resize(tokens.size() - n);
  for (std::size_t first = 0; first < n; first += passage) {
    const auto begin = once.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = begin + static_cast<std::ptrdiff_t>(std::min(passage, n - first));
    tokens.insert(tokens.end(), begin, end);
    tokens.insert(tokens.end(), begin, end);
  }
}

}  // namespace

Result<std::vector<Sequence>> read_sequences(const Tokenizer& tokenizer,
                                             const TextOptions& options) {
  CQKV_RETURN_IF_ERROR(check_options(options));
  const auto fields = split_fields(options.json_field);
  std::vector<std::unique_ptr<TokenStream>> streams;
  std::vector<std::size_t> files;  // of the streams
  for (const auto& file : options.files) {
    files.push_back(files.size());
    streams.push_back(std::make_unique<TokenStream>(tokenizer, file, fields, options.chat));
    CQKV_RETURN_IF_ERROR(streams.back()->open());
  }
  std::vector<std::size_t> n_sequences(files.size(), 0);  // of each file
  std::vector<Sequence> sequences;
  std::size_t n_wanted = options.n_tokens;
  std::size_t n_further = 0;
  std::size_t n_left = 0;
  std::size_t turn = 0;
  const bool bos = tokenizer.adds_bos();
  // A rest of one token would have nothing to predict; it is left out.
  while (n_wanted > 1 || n_further < options.n_further) {
    if (streams.empty()) {
      return too_short(sequences, n_left, options);
    }
    const bool further = n_wanted < 2;
    const std::size_t n = further ? options.n_ctx : std::min(options.n_ctx, n_wanted);
    turn %= streams.size();
    const std::size_t number = further ? n_further : n_sequences[files[turn]];
    // Of the further ones the second and the third of four, so that no file has only one kind.
    const bool repeats = further ? (number + 1) / 2 % 2 == 1 : number % 2 == 1;
    Sequence sequence{files[turn], {}, options.repeat && repeats};
    if (bos) {
      sequence.tokens.push_back(tokenizer.bos());
    }
    bool taken = false;
    const std::size_t n_new = (n - sequence.tokens.size()) / (sequence.repeats ? 2 : 1);
    CQKV_RETURN_IF_ERROR(streams[turn]->take(n_new, sequence.tokens, taken));
    if (!taken) {
      n_left += streams[turn]->n_left();
      streams.erase(streams.begin() + static_cast<std::ptrdiff_t>(turn));
      files.erase(files.begin() + static_cast<std::ptrdiff_t>(turn));
      continue;
    }
    if (sequence.repeats) {
      repeat_last(n_new, number / 2, sequence.tokens);
    }
    sequences.push_back(std::move(sequence));
    if (further) {
      n_further++;
    } else {
      n_sequences[files[turn]]++;
      n_wanted -= n;
    }
    turn++;
  }
  return sequences;
}

}  // namespace cqkv
