// See tokens.h.
#include "eval/tokens.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#include <sys/stat.h>

namespace cqkv::eval {
namespace {

struct Closer {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

Result<std::string> read_text(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return io_error(path + ": is a folder, want a text file");
  }
  const std::unique_ptr<std::FILE, Closer> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    const int error = errno;
    return Status(error == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError,
                  path + ": cannot open it: " + std::strerror(error));
  }
  constexpr std::size_t kPiece = 1U << 20U;
  std::string text;
  std::size_t n_read = kPiece;
  while (n_read == kPiece) {
    const std::size_t old_size = text.size();
    text.resize(old_size + kPiece);
    n_read = std::fread(text.data() + old_size, 1, kPiece, file.get());
    text.resize(old_size + n_read);
  }
  if (std::ferror(file.get()) != 0) {
    return io_error(path + ": cannot read it: " + std::strerror(errno));
  }
  if (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return text;
}

}  // namespace

Result<std::vector<llama_token>> tokenize_file(const llama_vocab* vocab, const std::string& path,
                                               bool add_special) {
  const auto text = read_text(path);
  if (!text.ok()) {
    return text.status();
  }
  if (text->empty() ||
      text->size() > static_cast<std::size_t>(std::numeric_limits<int>::max()) / 2) {
    return invalid_argument(path + ": the text has " + std::to_string(text->size()) +
                            " bytes, want 1 byte to 1 GiB");
  }
  const auto n_bytes = static_cast<std::int32_t>(text->size());
  std::vector<llama_token> tokens(text->size() + 8);
  std::int32_t n_tokens = llama_tokenize(vocab, text->data(), n_bytes, tokens.data(),
                                         static_cast<std::int32_t>(tokens.size()), add_special,
                                         /*parse_special=*/false);
  if (n_tokens < 0 && n_tokens != std::numeric_limits<std::int32_t>::min()) {
    tokens.resize(static_cast<std::size_t>(-n_tokens));
    n_tokens = llama_tokenize(vocab, text->data(), n_bytes, tokens.data(), -n_tokens, add_special,
                              /*parse_special=*/false);
  }
  if (n_tokens < 0) {
    return invalid_argument(path + ": libllama cannot tokenize the text");
  }
  tokens.resize(static_cast<std::size_t>(n_tokens));
  return tokens;
}

}  // namespace cqkv::eval
