// model_fingerprint reads the norms from the mapped file; see fingerprint.h.
#include "calibration/fingerprint.h"

#include "core/hash.h"
#include "graph/names.h"
#include "model_pass/gguf_file.h"

namespace cqkv {

Result<std::vector<std::uint64_t>> model_fingerprint(const std::string& model_path) {
  auto file = GgufFile::open(model_path);
  if (!file.ok()) {
    return file.status();
  }
  auto architecture = file->string("general.architecture");
  if (!architecture.ok()) {
    return architecture.status();
  }
  auto n_layers = file->integer(*architecture + ".block_count");
  if (!n_layers.ok()) {
    return n_layers.status();
  }
  constexpr std::int64_t kMaxLayers = 4096;
  if (*n_layers < 1 || *n_layers > kMaxLayers) {
    return corrupt(model_path + ": got " + std::to_string(*n_layers) + " layers, want 1 to " +
                   std::to_string(kMaxLayers));
  }
  std::vector<std::uint64_t> hashes;
  for (std::int64_t il = 0; il < *n_layers; il++) {
    auto norm = file->tensor(fingerprint_weight(static_cast<int>(il)));
    const bool known = norm.ok() && norm->type == GGML_TYPE_F32;
    hashes.push_back(known ? hash_bytes(norm->data, norm->n_bytes) : 0);
  }
  return hashes;
}

}  // namespace cqkv
