// See codebook_library.h.
#include "device/codebook_library.h"

#include <cstdlib>
#include <mutex>

#include "codebook_file/codebook_file.h"

namespace cqkv::device {
namespace {

std::mutex library_mutex;
std::shared_ptr<const CodebookLibrary> library_in_use;  // guarded by library_mutex

}  // namespace

Result<std::shared_ptr<const CodebookLibrary>> CodebookLibrary::load(const std::string& paths) {
  auto library = std::make_shared<CodebookLibrary>();
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

Result<std::shared_ptr<const CodebookLibrary>> current_library() {
  const std::lock_guard lock(library_mutex);
  if (library_in_use == nullptr) {
    const char* paths = std::getenv("CQKV_CODEBOOK");
    auto loaded = CodebookLibrary::load(paths == nullptr ? "" : paths);
    if (!loaded.ok()) {
      return loaded.status();
    }
    library_in_use = *loaded;
  }
  return library_in_use;
}

void set_current_library(std::shared_ptr<const CodebookLibrary> library) {
  const std::lock_guard lock(library_mutex);
  library_in_use = std::move(library);
}

}  // namespace cqkv::device
