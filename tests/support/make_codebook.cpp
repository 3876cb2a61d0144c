// Writes a codebook with random centroids, for tests of programs:
//   make_codebook OUT N_LAYERS CONFIG N_KV_HEADS HEAD_DIM ARCHITECTURE [FINGERPRINT]
// FINGERPRINT is that of every layer; without it the codebook names no model.
#include <cstdio>
#include <cstdlib>

#include "cqkv/codebook_file.h"

#include "support/codebooks.h"

namespace {

int number(const char* text) {
  return static_cast<int>(std::strtol(text, nullptr, 10));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) {
    std::fputs("make_codebook OUT N_LAYERS CONFIG N_KV_HEADS HEAD_DIM ARCHITECTURE [FINGERPRINT]\n",
               stderr);
    return 2;
  }
  const auto spec = cqkv::CodecSpec::parse(argv[3]);
  if (!spec.ok()) {
    std::fprintf(stderr, "make_codebook: %s\n", spec.status().message().c_str());
    return 2;
  }
  auto codebook = cqkv::testing::random_codebook(number(argv[2]), *spec, *spec, number(argv[4]),
                                                 number(argv[5]));
  codebook.origin.architecture = argv[6];
  codebook.origin.model_fingerprint.clear();
  if (argc == 8) {
    codebook.origin.model_name = "another model";
    codebook.origin.model_fingerprint.assign(codebook.layers.size(),
                                             std::strtoull(argv[7], nullptr, 10));
  }
  const cqkv::Status status = cqkv::write_codebook(codebook, argv[1]);
  if (!status.ok()) {
    std::fprintf(stderr, "make_codebook: %s\n", status.message().c_str());
  }
  return status.ok() ? 0 : 1;
}
