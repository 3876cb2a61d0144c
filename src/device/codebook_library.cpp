// See codebook_library.h.
#include "device/codebook_library.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cqkv/codebook_file.h"
#include "cqkv/isa.h"

#include "core/exceptions.h"
#include "device/refusal.h"

namespace cqkv::device {
namespace {

std::mutex library_mutex;
std::shared_ptr<const CodebookLibrary> library_in_use;  // guarded by library_mutex
std::optional<WindowChoice> window_choice;              // guarded by library_mutex
std::optional<bool> byte_tables;                        // guarded by library_mutex

// A number from the environment; nothing if the variable is not set or empty.
Status read_number(const char* name, int lowest, std::optional<int>& out) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == 0) {
    return {};
  }
  const char* end = text + std::strlen(text);
  int value = 0;
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc() || rest != end || value < lowest || value > kMaxWindow) {
    return invalid_argument(std::string(name) + ": got '" + text + "', want a number from " +
                            std::to_string(lowest) + " to " + std::to_string(kMaxWindow));
  }
  out = value;
  return {};
}

Result<bool> wants_byte_tables() {
  const std::lock_guard lock(library_mutex);
  std::optional<int> number;
  CQKV_RETURN_IF_ERROR(read_number("CQKV_BYTE_TABLES", 0, number));
  return byte_tables.value_or(number.value_or(1) != 0);
}

}  // namespace

Result<WindowChoice> WindowChoice::from_environment() {
  WindowChoice result;
  std::optional<int> n_sequences;
  CQKV_RETURN_IF_ERROR(read_number("CQKV_WINDOW", 0, result.window.window));
  CQKV_RETURN_IF_ERROR(read_number("CQKV_SINKS", 0, result.window.sinks));
  CQKV_RETURN_IF_ERROR(read_number("CQKV_SPARE", 0, result.window.spare));
  CQKV_RETURN_IF_ERROR(read_number("CQKV_SEQUENCES", 1, n_sequences));
  result.n_sequences = n_sequences.value_or(result.n_sequences);
  return result;
}

void set_window_choice(const WindowChoice& choice) {
  const std::lock_guard lock(library_mutex);
  window_choice = choice;
}

Result<WindowChoice> current_window_choice() {
  const std::lock_guard lock(library_mutex);
  return window_choice ? Result<WindowChoice>(*window_choice) : WindowChoice::from_environment();
}

void set_byte_tables(bool wanted) {
  const std::lock_guard lock(library_mutex);
  byte_tables = wanted;
}

WindowPool CodebookLibrary::pool_of(const LoadedCodebook& book, std::size_t n_streams,
                                    std::size_t cells_per_stream) const {
  // Separate streams hold one sequence each.
  const int n_sequences = n_streams > 1 ? 1 : window_.n_sequences;
  return window_pool(window_of(book), book.codebook, cells_per_stream,
                     static_cast<std::size_t>(n_sequences));
}

Result<std::shared_ptr<const CodebookLibrary>> CodebookLibrary::read(const std::string& paths) {
  auto library = std::make_shared<CodebookLibrary>();
  const Result<WindowChoice> choice = current_window_choice();
  if (!choice.ok()) {
    return choice.status();
  }
  library->window_ = *choice;
  const Result<bool> bytes = wants_byte_tables();
  if (!bytes.ok()) {
    return bytes.status();
  }
  library->byte_tables_ = *bytes;
  std::size_t begin = 0;
  while (begin < paths.size()) {
    std::size_t end = paths.find(':', begin);
    end = end == std::string::npos ? paths.size() : end;
    if (end > begin) {
      const std::string path = paths.substr(begin, end - begin);
      Result<Codebook> book = read_codebook(path);
      if (!book.ok()) {
        return book.status();
      }
      auto entry = std::make_unique<LoadedCodebook>();
      entry->path = path;
      entry->identity = book->identity();
      entry->codebook = std::move(*book);
      library->books_.push_back(std::move(entry));
    }
    begin = end + 1;
  }
  return std::shared_ptr<const CodebookLibrary>(std::move(library));
}

std::string CodebookLibrary::names() const {
  std::string result;
  for (const auto& book : books_) {
    result += (result.empty() ? "" : ", ") + book->path + " (of " +
              book->codebook.origin.model_name + ")";
  }
  return result;
}

const LoadedCodebook* CodebookLibrary::match(const CacheName& name, std::int64_t n_channels) const {
  for (const auto& book : books_) {
    if (static_cast<std::size_t>(name.layer) >= book->codebook.layers.size()) {
      continue;
    }
    const TensorCodebook* side =
        book->codebook.layers[static_cast<std::size_t>(name.layer)].get(name.kind);
    if (side == nullptr || side->n_channels() == n_channels) {
      return book.get();
    }
  }
  return nullptr;
}

Result<std::shared_ptr<const CodebookLibrary>> CodebookLibrary::load(const char* paths) {
  return without_exceptions("reading codebooks",
                            [&] { return read(paths == nullptr ? "" : paths); });
}

Result<std::shared_ptr<const CodebookLibrary>> current_library() {
  CQKV_RETURN_IF_ERROR(isa_status());
  {
    const std::lock_guard lock(library_mutex);
    if (library_in_use != nullptr) {
      return library_in_use;
    }
  }
  auto loaded = CodebookLibrary::load(std::getenv("CQKV_CODEBOOK"));
  if (!loaded.ok()) {
    return loaded.status();
  }
  const std::lock_guard lock(library_mutex);
  if (library_in_use == nullptr) {
    library_in_use = *loaded;
  }
  return library_in_use;
}

void set_current_library(std::shared_ptr<const CodebookLibrary> library) {
  const std::lock_guard lock(library_mutex);
  library_in_use = std::move(library);
}

}  // namespace cqkv::device
