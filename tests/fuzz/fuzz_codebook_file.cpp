// Fuzz target: any bytes as a codebook file. What is accepted must survive use and, tried
// for some since writing waits for the disk, give the same codebook when written again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "cqkv/codebook_file.h"

#include "core/hash.h"

namespace {

void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

// A file in memory, made once: the reader wants a path to a regular file.
class MemoryFile {
 public:
  MemoryFile() : file_(memfd_create("fuzz", 0)), path_("/proc/self/fd/" + std::to_string(file_)) {}

  const std::string& path() const { return path_; }

  void set(const std::uint8_t* data, std::size_t size) const {
    require(ftruncate(file_, 0) == 0);
    require(pwrite(file_, data, size, 0) == static_cast<ssize_t>(size));
  }

 private:
  int file_;
  std::string path_;
};

void use(const cqkv::Codebook& codebook) {
  for (const auto& layer : codebook.layers) {
    for (const auto kind : {cqkv::KvKind::kKey, cqkv::KvKind::kValue}) {
      const cqkv::TensorCodebook* tensor = layer.get(kind);
      if (tensor != nullptr && tensor->n_channels() <= 4096) {
        const std::vector<float> row(static_cast<std::size_t>(tensor->n_channels()), 0.5F);
        std::vector<std::uint16_t> codes(static_cast<std::size_t>(tensor->n_codes()));
        tensor->encode(row.data(), 1, row.size(), codes.data());
        for (const std::uint16_t code : codes) {
          require(code < tensor->spec().n_centroids());
        }
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile file;
  file.set(data, size);
  const auto codebook = cqkv::read_codebook(file.path());
  if (!codebook.ok()) {
    require(codebook.status().message().rfind(file.path(), 0) == 0);
    return 0;
  }
  use(*codebook);
  if (cqkv::hash_bytes(data, size) % 64 != 0) {
    return 0;
  }
  const std::string copy = "/tmp/cqkv_fuzz_" + std::to_string(getpid()) + ".gguf";
  require(cqkv::write_codebook(*codebook, copy).ok());
  const auto again = cqkv::read_codebook(copy);
  unlink(copy.c_str());
  require(again.ok() && again->identity() == codebook->identity());
  return 0;
}
