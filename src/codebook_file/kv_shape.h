// The little of a model file that decides whether a codebook belongs to it: its names
// and, per layer, the KV heads. Read from the GGUF header alone, no weights.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

namespace cqkv {

struct LayerKvShape {
  int n_kv_heads = 0;  ///< 0: no attention cache in this layer.
  int k_head_dim = 0;
  int v_head_dim = 0;

  std::size_t n_channels(KvKind kind) const {
    return static_cast<std::size_t>(n_kv_heads) * (kind == KvKind::kKey ? k_head_dim : v_head_dim);
  }
};

struct ModelKvShape {
  std::string path;
  std::string architecture;
  std::string name;  ///< general.name; the file's name if absent.
  std::vector<LayerKvShape> layers;
};

/// kNotFound, kIoError or kCorrupt if the file is no GGUF of a model: a codebook, say.
Status check_is_model(const std::string& path);

/// kNotFound, kIoError or kCorrupt; the message begins with the path. Layers of a model
/// with several head sizes (sliding windows) get the common one.
Result<ModelKvShape> read_kv_shape(const std::string& path);

/// kMismatch, with the names of both, unless architecture, number of layers and every
/// coded tensor's heads agree. Equal shapes do not prove the same model: the
/// fingerprint does.
Status check_fits(const Codebook& codebook, const std::string& codebook_path,
                  const ModelKvShape& model);

}  // namespace cqkv
