// A main for fuzz targets without libFuzzer, for the test suite: runs the files of a
// folder, then N random changes of them.
//
//   TARGET CORPUS_FOLDER N
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "core/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

std::vector<Bytes> read_folder(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> files;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return files;
}

void change(Bytes& bytes, cqkv::Rng& rng) {
  for (std::uint64_t n = 1 + rng.below(4); n > 0 && !bytes.empty(); n--) {
    const std::size_t at = rng.below(bytes.size());
    switch (rng.below(4)) {
      case 0:
        bytes[at] = static_cast<std::uint8_t>(rng.below(256));
        break;
      case 1:
        bytes[at] ^= static_cast<std::uint8_t>(1U << rng.below(8));
        break;
      case 2:
        bytes.resize(at);
        break;
      default:
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                     static_cast<std::uint8_t>(rng.below(256)));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER N\n", argv[0]);
    return 2;
  }
  const std::vector<Bytes> files = read_folder(argv[1]);
  const unsigned long n_changes = std::strtoul(argv[2], nullptr, 10);
  if (files.empty()) {
    std::fprintf(stderr, "%s: no files\n", argv[1]);
    return 1;
  }
  for (const Bytes& file : files) {
    LLVMFuzzerTestOneInput(file.data(), file.size());
  }
  cqkv::Rng rng(1);
  for (unsigned long i = 0; i < n_changes; i++) {
    Bytes bytes = files[rng.below(files.size())];
    change(bytes, rng);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%zu files and %lu changes of them\n", files.size(), n_changes);
  return 0;
}
