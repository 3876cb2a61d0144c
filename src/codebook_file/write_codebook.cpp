// write_codebook: the header through ggml's writer, the centroids by hand, because
// ggml's file writer loses the system's error.
#include <deque>
#include <memory>
#include <new>
#include <vector>

#include <ggml.h>
#include <gguf.h>

#include "codebook_file/atomic_file.h"
#include "codebook_file/codebook_file.h"
#include "codebook_file/format.h"
#include "codebook_file/gguf_scan.h"

namespace cqkv {
namespace {

struct GgmlFreer {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

using GgmlHandle = std::unique_ptr<ggml_context, GgmlFreer>;

constexpr KvKind kBothKinds[] = {KvKind::kKey, KvKind::kValue};

Status check_writable(const Codebook& codebook) {
  const std::size_t n_layers = codebook.layers.size();
  if (n_layers == 0 || n_layers > format::kMaxLayers) {
    return invalid_argument("codebook: got " + std::to_string(n_layers) + " layers, want 1 to " +
                            std::to_string(format::kMaxLayers));
  }
  const std::size_t n_hashes = codebook.origin.model_fingerprint.size();
  if (n_hashes != 0 && n_hashes != n_layers) {
    return invalid_argument("codebook: the model fingerprint has " + std::to_string(n_hashes) +
                            " layers, the codebook " + std::to_string(n_layers));
  }
  for (std::size_t il = 0; il < n_layers; il++) {
    for (const KvKind kind : kBothKinds) {
      const TensorCodebook* tensor = codebook.layers[il].get(kind);
      if (tensor != nullptr && (tensor->n_kv_heads() > format::kMaxKvHeads ||
                                tensor->head_dim() > format::kMaxHeadDim)) {
        return invalid_argument("codebook: layer " + std::to_string(il) + " has " +
                                std::to_string(tensor->n_kv_heads()) + " KV heads of " +
                                std::to_string(tensor->head_dim()) + " channels, want at most " +
                                std::to_string(format::kMaxKvHeads) + " of " +
                                std::to_string(format::kMaxHeadDim));
      }
    }
  }
  return {};
}

void set_strings(gguf_context* out, const char* key, const std::vector<std::string>& values) {
  std::vector<const char*> pointers;
  pointers.reserve(values.size());
  for (const auto& value : values) {
    pointers.push_back(value.c_str());
  }
  gguf_set_arr_str(out, key, pointers.data(), pointers.size());
}

void set_origin(gguf_context* out, const Codebook& codebook) {
  const CodebookOrigin& origin = codebook.origin;
  gguf_set_val_str(out, format::kGeneralType, format::kType);
  gguf_set_val_str(out, format::kGeneralArchitecture, origin.architecture.c_str());
  gguf_set_val_str(out, format::kGeneralName, origin.name.c_str());
  if (!origin.license.empty()) {
    gguf_set_val_str(out, format::kGeneralLicense, origin.license.c_str());
  }
  if (!origin.model_name.empty()) {
    gguf_set_val_u32(out, format::kBaseModelCount, 1);
    gguf_set_val_str(out, format::kBaseModelName, origin.model_name.c_str());
  }
  const std::uint32_t version[2] = {kCodebookFileMajor, kCodebookFileMinor};
  gguf_set_arr_data(out, format::kVersion, GGUF_TYPE_UINT32, version, 2);
  gguf_set_val_str(out, format::kMethodKey, format::kMethod);
  gguf_set_val_u64(out, format::kIdentity, codebook.identity());
  gguf_set_arr_data(out, format::kModelFingerprint, GGUF_TYPE_UINT64,
                    origin.model_fingerprint.data(), origin.model_fingerprint.size());
  gguf_set_val_str(out, format::kModelName, origin.model_name.c_str());
  gguf_set_val_str(out, format::kKeyRopeKey, format::kKeyRope);
  gguf_set_val_u32(out, format::kWindow, codebook.window);
  gguf_set_val_u32(out, format::kSinks, codebook.sinks);
  set_strings(out, format::kDatasets, origin.datasets);
  gguf_set_val_u32(out, format::kNTokens, origin.n_tokens);
  gguf_set_val_u32(out, format::kCtxSize, origin.ctx_size);
  gguf_set_val_str(out, format::kWeighting, origin.weighting.c_str());
  gguf_set_val_u64(out, format::kSeed, origin.seed);
  gguf_set_val_str(out, format::kToolVersion, origin.tool_version.c_str());
}

void set_held_out(gguf_context* out, const HeldOutLoss& held_out) {
  if (held_out.n_tokens != 0) {
    gguf_set_val_u32(out, format::kHeldOutTokens, held_out.n_tokens);
    gguf_set_val_f32(out, format::kHeldOutKeyLoss, held_out.keys);
    gguf_set_val_f32(out, format::kHeldOutValueLoss, held_out.values);
  }
}

// A group size of 0 for a layer whose heads differ; theirs follow in an array of their own.
void set_specs(gguf_context* out, const Codebook& codebook, KvKind kind) {
  std::vector<std::uint32_t> group_dims;
  std::vector<std::uint32_t> code_bits;
  std::vector<std::uint32_t> head_group_dims;
  for (const auto& layer : codebook.layers) {
    const TensorCodebook* tensor = layer.get(kind);
    const bool uniform = tensor == nullptr || tensor->spec().uniform();
    const CodecSpec spec = tensor == nullptr ? CodecSpec{} : tensor->spec().spec(0);
    group_dims.push_back(uniform ? static_cast<std::uint32_t>(spec.group_dim) : 0U);
    code_bits.push_back(static_cast<std::uint32_t>(spec.code_bits));
    if (!uniform) {
      const std::vector<int>& dims = tensor->spec().group_dims();
      head_group_dims.insert(head_group_dims.end(), dims.begin(), dims.end());
    }
  }
  const auto set = [out](const char* key, const std::vector<std::uint32_t>& values) {
    gguf_set_arr_data(out, key, GGUF_TYPE_UINT32, values.data(), values.size());
  };
  set(format::group_dim_key(kind), group_dims);
  set(format::code_bits_key(kind), code_bits);
  if (!head_group_dims.empty()) {
    set(format::head_group_dims_key(kind), head_group_dims);
  }
}

// What is written of one tensor: 16-bit numbers, floats or not.
using Halves = std::span<const std::uint16_t>;

// The centroids of the heads that have codes, or the means of those that have none.
std::vector<std::uint16_t> values_of(const TensorCodebook& tensor, bool coded) {
  const TensorSpec& spec = tensor.spec();
  std::vector<std::uint16_t> values;
  const std::uint16_t* next = tensor.centroids().data();
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    const std::size_t n = spec.n_centroid_values(kv_head);
    if (spec.coded(kv_head) == coded) {
      values.insert(values.end(), next, next + n);
    }
    next += n;
  }
  return values;
}

// Collects the tensors in the order of the file.
class Entries {
 public:
  Entries(gguf_context* out, ggml_context* ggml) : out_(out), ggml_(ggml) {}

  void add(std::size_t layer, KvKind kind, const TensorCodebook& tensor) {
    const TensorSpec& spec = tensor.spec();
    const std::int64_t head_dim = spec.head_dim();
    const TensorBasis::Parts& basis = tensor.basis().parts();
    if (spec.uniform()) {
      add(format::tensor_name(layer, kind),
          ggml_new_tensor_4d(ggml_, GGML_TYPE_F16, spec.group_dim(0), spec.n_centroids(),
                             spec.n_groups(0), spec.n_kv_heads()),
          tensor.centroids());
    } else {
      add_heads(format::tensor_name(layer, kind), head_dim * spec.n_centroids(),
                values_of(tensor, true));
      add_heads(format::part_name(layer, kind, format::kMean), head_dim, values_of(tensor, false));
    }
    if (!basis.order.empty()) {
      add(format::part_name(layer, kind, format::kOrder),
          ggml_new_tensor_2d(ggml_, GGML_TYPE_I16, head_dim, spec.n_kv_heads()), basis.order);
    }
    if (!basis.rotation.empty()) {
      add(format::part_name(layer, kind, format::kRotation),
          ggml_new_tensor_3d(ggml_, GGML_TYPE_F16, head_dim, head_dim, spec.n_kv_heads()),
          basis.rotation);
    }
    if (!basis.metric.empty()) {
      add(format::part_name(layer, kind, format::kMetric),
          ggml_new_tensor_1d(ggml_, GGML_TYPE_F16, static_cast<std::int64_t>(basis.metric.size())),
          basis.metric);
    }
  }

  const std::vector<Halves>& contents() const { return contents_; }

 private:
  // Rows of some heads, if there are any.
  void add_heads(const std::string& name, std::int64_t n_values, std::vector<std::uint16_t> rows) {
    if (!rows.empty()) {
      const auto n_heads = static_cast<std::int64_t>(rows.size()) / n_values;
      owned_.push_back(std::move(rows));
      add(name, ggml_new_tensor_2d(ggml_, GGML_TYPE_F16, n_values, n_heads), owned_.back());
    }
  }

  void add(const std::string& name, ggml_tensor* entry, Halves content) {
    ggml_set_name(entry, name.c_str());
    gguf_add_tensor(out_, entry);
    contents_.push_back(content);
  }

  gguf_context* out_;
  ggml_context* ggml_;
  std::vector<Halves> contents_;
  std::deque<std::vector<std::uint16_t>> owned_;  // what contents_ has of it stays where it is
};

constexpr std::size_t kMostEntries = 4;  // of one side: centroids, means, order or rotation, metric

Status write_tensor(AtomicFile& file, Halves content, std::size_t alignment) {
  const std::size_t n_bytes = content.size_bytes();
  CQKV_RETURN_IF_ERROR(file.write(content.data(), n_bytes));
  const std::vector<char> padding((alignment - n_bytes % alignment) % alignment);
  return file.write(padding.data(), padding.size());
}

Status write_checked(const Codebook& codebook, const std::string& path) {
  CQKV_RETURN_IF_ERROR(check_writable(codebook));
  const GgufHandle header(gguf_init_empty());
  const GgmlHandle ggml(
      ggml_init({/*mem_size=*/2 * kMostEntries * codebook.layers.size() * ggml_tensor_overhead(),
                 /*mem_buffer=*/nullptr, /*no_alloc=*/true}));
  if (header == nullptr || ggml == nullptr) {
    return {StatusCode::kResourceExhausted, path + ": not enough memory for its header"};
  }
  set_origin(header.get(), codebook);
  set_held_out(header.get(), codebook.origin.held_out);
  for (const KvKind kind : kBothKinds) {
    set_specs(header.get(), codebook, kind);
  }
  Entries entries(header.get(), ggml.get());
  for (std::size_t il = 0; il < codebook.layers.size(); il++) {
    for (const KvKind kind : kBothKinds) {
      if (const TensorCodebook* tensor = codebook.layers[il].get(kind)) {
        entries.add(il, kind, *tensor);
      }
    }
  }
  std::vector<char> meta(gguf_get_meta_size(header.get()));
  gguf_get_meta_data(header.get(), meta.data());

  AtomicFile file(path);
  CQKV_RETURN_IF_ERROR(file.open());
  CQKV_RETURN_IF_ERROR(file.write(meta.data(), meta.size()));
  for (const Halves content : entries.contents()) {
    CQKV_RETURN_IF_ERROR(write_tensor(file, content, gguf_get_alignment(header.get())));
  }
  return file.commit();
}

}  // namespace

Status write_codebook(const Codebook& codebook, const std::string& path) {
  try {
    return write_checked(codebook, path);
  } catch (const std::bad_alloc&) {
    return {StatusCode::kResourceExhausted, path + ": not enough memory to write it"};
  }
}

}  // namespace cqkv
