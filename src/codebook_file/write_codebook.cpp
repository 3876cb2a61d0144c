// write_codebook: what is written of a codebook, and in which order; the file is gguf/writer.h.
#include <array>
#include <deque>
#include <initializer_list>
#include <new>
#include <optional>
#include <span>
#include <vector>

#include "cqkv/codebook_file.h"

#include "codebook/byte_centroids.h"
#include "codebook_file/format.h"
#include "gguf/writer.h"

namespace cqkv {
namespace {

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

void set_origin(gguf::Writer& out, const Codebook& codebook) {
  const CodebookOrigin& origin = codebook.origin;
  out.set_string(format::kGeneralType, format::kType);
  out.set_string(format::kGeneralArchitecture, origin.architecture);
  out.set_string(format::kGeneralName, origin.name);
  if (!origin.license.empty()) {
    out.set_string(format::kGeneralLicense, origin.license);
  }
  if (!origin.model_name.empty()) {
    out.set_u32(format::kBaseModelCount, 1);
    out.set_string(format::kBaseModelName, origin.model_name);
  }
  out.set_u32s(format::kVersion, std::array{kCodebookFileMajor, kCodebookFileMinor});
  out.set_string(format::kMethodKey, format::kMethod);
  out.set_u64(format::kIdentity, codebook.identity());
  out.set_u64s(format::kModelFingerprint, origin.model_fingerprint);
  out.set_string(format::kModelName, origin.model_name);
  out.set_string(format::kKeyRopeKey, format::kKeyRope);
  out.set_u32(format::kWindow, codebook.window);
  out.set_u32(format::kSinks, codebook.sinks);
  out.set_strings(format::kDatasets, origin.datasets);
  out.set_u32(format::kNTokens, origin.n_tokens);
  out.set_u32(format::kCtxSize, origin.ctx_size);
  out.set_string(format::kWeighting, origin.weighting);
  out.set_u64(format::kSeed, origin.seed);
  out.set_string(format::kToolVersion, origin.tool_version);
}

void set_held_out(gguf::Writer& out, const HeldOutLoss& held_out) {
  if (held_out.n_tokens != 0) {
    out.set_u32(format::kHeldOutTokens, held_out.n_tokens);
    out.set_f32(format::kHeldOutKeyLoss, held_out.keys);
    out.set_f32(format::kHeldOutValueLoss, held_out.values);
  }
}

// A group size of 0 for a layer whose heads differ; theirs follow in an array of their own.
void set_specs(gguf::Writer& out, const Codebook& codebook, KvKind kind) {
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
  out.set_u32s(format::group_dim_key(kind), group_dims);
  out.set_u32s(format::code_bits_key(kind), code_bits);
  if (!head_group_dims.empty()) {
    out.set_u32s(format::head_group_dims_key(kind), head_group_dims);
  }
}

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

// Adds tensors to a file in its order, and keeps what is written until it is.
class TensorWriter {
 public:
  explicit TensorWriter(gguf::Writer& out) : out_(out) {}

  void add(std::size_t layer, KvKind kind, const TensorCodebook& tensor) {
    const TensorSpec& spec = tensor.spec();
    const std::int64_t head_dim = spec.head_dim();
    const std::int64_t n_heads = spec.n_kv_heads();
    const TensorBasis::Parts& basis = tensor.basis().parts();
    const auto part = [&](const char* name) { return format::part_name(layer, kind, name); };
    add_centroids(format::tensor_name(layer, kind), part(format::kScale), tensor);
    add_rows(part(format::kMean), head_dim, values_of(tensor, false));
    add(part(format::kOrder), gguf::TensorType::kI16, {head_dim, n_heads}, basis.order);
    add(part(format::kRotation), gguf::TensorType::kF16, {head_dim, head_dim, n_heads},
        basis.rotation);
    add(part(format::kMetric), gguf::TensorType::kF16,
        {static_cast<std::int64_t>(basis.metric.size())}, basis.metric);
  }

 private:
  // Of the heads with codes; as bytes if nothing is lost.
  void add_centroids(const std::string& name, const std::string& scale_name,
                     const TensorCodebook& tensor) {
    std::optional<ByteCentroids> bytes = byte_centroids(tensor);
    if (!bytes) {
      halves_.push_back(values_of(tensor, true));
      add_heads(name, gguf::TensorType::kF16, tensor.spec(), halves_.back());
      return;
    }
    bytes_.push_back(std::move(bytes->bytes));
    add_heads(name, gguf::TensorType::kI8, tensor.spec(), bytes_.back());
    add_rows(scale_name, tensor.head_dim(), std::move(bytes->largest));
  }

  template <typename T>
  void add_heads(const std::string& name, gguf::TensorType type, const TensorSpec& spec,
                 const std::vector<T>& content) {
    if (spec.uniform()) {
      add(name, type, {spec.group_dim(0), spec.n_centroids(), spec.n_groups(0), spec.n_kv_heads()},
          content);
      return;
    }
    const std::int64_t n_values = std::int64_t{spec.head_dim()} * spec.n_centroids();
    add(name, type, {n_values, static_cast<std::int64_t>(content.size()) / n_values}, content);
  }

  // Rows of 16-bit floats of some heads.
  void add_rows(const std::string& name, std::int64_t n_values, std::vector<std::uint16_t> rows) {
    const auto n_heads = static_cast<std::int64_t>(rows.size()) / n_values;
    halves_.push_back(std::move(rows));
    add(name, gguf::TensorType::kF16, {n_values, n_heads}, halves_.back());
  }

  // What is empty is left out.
  template <typename T>
  void add(const std::string& name, gguf::TensorType type, std::initializer_list<std::int64_t> ne,
           const std::vector<T>& content) {
    if (!content.empty()) {
      out_.add_tensor(name, type, {ne.begin(), ne.size()}, content.data());
    }
  }

  gguf::Writer& out_;
  std::deque<std::vector<std::uint16_t>> halves_;
  std::deque<std::vector<std::int8_t>> bytes_;
};

Status write_checked(const Codebook& codebook, const std::string& path) {
  CQKV_RETURN_IF_ERROR(check_writable(codebook));
  gguf::Writer out;
  set_origin(out, codebook);
  set_held_out(out, codebook.origin.held_out);
  for (const KvKind kind : kBothKinds) {
    set_specs(out, codebook, kind);
  }
  TensorWriter tensors(out);
  for (std::size_t il = 0; il < codebook.layers.size(); il++) {
    for (const KvKind kind : kBothKinds) {
      if (const TensorCodebook* tensor = codebook.layers[il].get(kind)) {
        tensors.add(il, kind, *tensor);
      }
    }
  }
  return out.write(path);
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
