// read_codebook: the file is read by gguf/reader.h; here the meaning is checked, and the identity
// at the end.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <new>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cqkv/codebook_file.h"

#include "codebook/byte_centroids.h"
#include "codebook_file/format.h"
#include "core/half.h"
#include "gguf/reader.h"

namespace cqkv {
namespace {

std::string hex(std::uint64_t value) {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value));
  return text.data();
}

class CodebookReader {
 public:
  explicit CodebookReader(const gguf::Reader& file) : file_(file) {}

  Result<Codebook> run();

 private:
  // Where the centroids of one side are; null for what is not there.
  struct Places {
    std::string name;
    const gguf::Tensor* coded = nullptr;
    const gguf::Tensor* mean = nullptr;
    const gguf::Tensor* scale = nullptr;  // if the coded heads' centroids are bytes
  };

  Status check_type_and_version();
  Status check_constant(const char* key, const char* want);
  Status check_only_known_names();
  Status read_origin();
  Status read_counts();
  Status read_held_out();
  Result<std::vector<CodecSpec>> read_specs(KvKind kind);
  Status read_head_group_dims(KvKind kind);
  Status read_layers();
  Status read_tensor(std::size_t layer, KvKind kind, const CodecSpec& spec);
  Result<TensorSpec> uniform_shape(const gguf::Tensor& tensor, const CodecSpec& spec) const;
  Result<TensorSpec> mixed_shape(const Places& places, KvKind kind, int code_bits);
  Result<std::int64_t> mixed_head_dim(const Places& places, int code_bits) const;
  Status check_types(const Places& places) const;
  Status check_scale(const Places& places, const TensorSpec& spec) const;
  Status read_halves(const gguf::Tensor* tensor, std::vector<std::uint16_t>& out);
  Status read_bytes(const Places& places, const TensorSpec& spec,
                    std::vector<std::uint16_t>& centroids);
  Status read_centroids(const Places& places, const TensorSpec& spec, std::vector<float>& out);
  Result<Places> find_places(std::size_t layer, KvKind kind, const CodecSpec& spec) const;
  Status read_basis_part(const std::string& name, gguf::TensorType want, std::size_t size,
                         std::vector<std::uint16_t>& out);
  Result<TensorBasis> read_basis(std::size_t layer, KvKind kind, const TensorSpec& spec);

  const gguf::Reader& file_;
  std::uint32_t minor_ = 0;
  std::size_t n_tensors_ = 0;  // expected by the specs
  // Of layers whose heads differ, one layer after the other, and how many were used.
  std::vector<std::uint32_t> head_group_dims_[2];
  std::size_t n_head_group_dims_[2] = {0, 0};
  Codebook codebook_;
};

// Assigns a field or returns its error from the enclosing function.
template <typename T>
Status assign(T& out, Result<T> value) {
  if (!value.ok()) {
    return value.status();
  }
  out = *std::move(value);
  return {};
}

Status CodebookReader::check_constant(const char* key, const char* want) {
  const auto value = file_.get_string(key);
  if (!value.ok()) {
    return value.status();
  }
  if (*value != want) {
    return unsupported(file_.path() + ": " + key + " is '" + *value + "', want '" + want + "'");
  }
  return {};
}

Status CodebookReader::check_type_and_version() {
  const auto type = file_.get_string(format::kGeneralType);
  if (!type.ok() || *type != format::kType) {
    const bool model = file_.has(format::kGeneralArchitecture) && (!type.ok() || *type == "model");
    return file_.bad("is " + std::string(model ? "a model, " : "") + "not a codebook: " +
                     format::kGeneralType + " is " + (type.ok() ? "'" + *type + "'" : "missing") +
                     ", want '" + format::kType + "'; make one with cqkv calibrate");
  }
  const auto version = file_.get_u32s(format::kVersion);
  if (!version.ok()) {
    return version.status();
  }
  if (version->size() != 2) {
    return file_.bad(std::string(format::kVersion) + " has " + std::to_string(version->size()) +
                     " numbers, want 2 (major, minor)");
  }
  if ((*version)[0] != kCodebookFileMajor) {
    return unsupported(file_.path() + ": format version " + std::to_string((*version)[0]) + "." +
                       std::to_string((*version)[1]) + ", this program reads " +
                       std::to_string(kCodebookFileMajor) +
                       ".x; use the cqkv that made it or calibrate again");
  }
  minor_ = (*version)[1];
  CQKV_RETURN_IF_ERROR(check_constant(format::kMethodKey, format::kMethod));
  return check_constant(format::kKeyRopeKey, format::kKeyRope);
}

Status CodebookReader::check_only_known_names() {
  if (minor_ > kCodebookFileMinor) {
    return {};  // a later minor version may say more than we know
  }
  static constexpr const char* kKnown[] = {format::kVersion,
                                           format::kMethodKey,
                                           format::kIdentity,
                                           format::kModelFingerprint,
                                           format::kModelName,
                                           format::kKeyRopeKey,
                                           format::kWindow,
                                           format::kSinks,
                                           format::kDatasets,
                                           format::kNTokens,
                                           format::kCtxSize,
                                           format::kWeighting,
                                           format::kSeed,
                                           format::kToolVersion,
                                           format::kKeyGroupDim,
                                           format::kKeyCodeBits,
                                           format::kValueGroupDim,
                                           format::kValueCodeBits,
                                           format::kKeyHeadGroupDims,
                                           format::kValueHeadGroupDims,
                                           format::kHeldOutTokens,
                                           format::kHeldOutKeyLoss,
                                           format::kHeldOutValueLoss};
  for (const std::string& key : file_.keys()) {
    const bool ours = key.compare(0, std::strlen(format::kPrefix), format::kPrefix) == 0;
    if (ours && std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown)) {
      return file_.bad("unknown key '" + key + "' in a file of version " +
                       std::to_string(kCodebookFileMajor) + "." + std::to_string(minor_));
    }
  }
  const std::size_t n_tensors = file_.tensors().size();
  if (n_tensors != n_tensors_) {  // all expected ones were found, names are unique
    return file_.bad("has " + std::to_string(n_tensors) + " tensors, want " +
                     std::to_string(n_tensors_));
  }
  return {};
}

Status CodebookReader::read_origin() {
  CodebookOrigin& origin = codebook_.origin;
  CQKV_RETURN_IF_ERROR(assign(origin.architecture, file_.get_string(format::kGeneralArchitecture)));
  CQKV_RETURN_IF_ERROR(assign(origin.name, file_.get_string_or_empty(format::kGeneralName)));
  CQKV_RETURN_IF_ERROR(assign(origin.license, file_.get_string_or_empty(format::kGeneralLicense)));
  CQKV_RETURN_IF_ERROR(assign(origin.model_name, file_.get_string(format::kModelName)));
  CQKV_RETURN_IF_ERROR(assign(origin.weighting, file_.get_string(format::kWeighting)));
  CQKV_RETURN_IF_ERROR(assign(origin.tool_version, file_.get_string(format::kToolVersion)));
  return assign(origin.datasets, file_.get_strings(format::kDatasets));
}

Status CodebookReader::read_counts() {
  CodebookOrigin& origin = codebook_.origin;
  CQKV_RETURN_IF_ERROR(assign(origin.n_tokens, file_.get_u32(format::kNTokens)));
  CQKV_RETURN_IF_ERROR(assign(origin.ctx_size, file_.get_u32(format::kCtxSize)));
  CQKV_RETURN_IF_ERROR(assign(origin.seed, file_.get_u64(format::kSeed)));
  CQKV_RETURN_IF_ERROR(assign(codebook_.window, file_.get_u32(format::kWindow)));
  CQKV_RETURN_IF_ERROR(assign(codebook_.sinks, file_.get_u32(format::kSinks)));
  return assign(origin.model_fingerprint, file_.get_u64s(format::kModelFingerprint));
}

// Since version 1.1, and only if it was measured.
Status CodebookReader::read_held_out() {
  HeldOutLoss& held_out = codebook_.origin.held_out;
  const auto has = [&](const char* key) { return file_.has(key); };
  if (!has(format::kHeldOutTokens) && !has(format::kHeldOutKeyLoss) &&
      !has(format::kHeldOutValueLoss)) {
    return {};
  }
  CQKV_RETURN_IF_ERROR(assign(held_out.n_tokens, file_.get_u32(format::kHeldOutTokens)));
  CQKV_RETURN_IF_ERROR(assign(held_out.keys, file_.get_f32(format::kHeldOutKeyLoss)));
  CQKV_RETURN_IF_ERROR(assign(held_out.values, file_.get_f32(format::kHeldOutValueLoss)));
  for (const float loss : {held_out.keys, held_out.values}) {
    if (!std::isfinite(loss) || loss < 0) {
      return file_.bad("the loss on held-out text is " + std::to_string(loss) +
                       ", want a finite number of at least 0");
    }
  }
  return {};
}

Result<std::vector<CodecSpec>> CodebookReader::read_specs(KvKind kind) {
  const auto group_dims = file_.get_u32s(format::group_dim_key(kind));
  if (!group_dims.ok()) {
    return group_dims.status();
  }
  const auto code_bits = file_.get_u32s(format::code_bits_key(kind));
  if (!code_bits.ok()) {
    return code_bits.status();
  }
  if (group_dims->size() != code_bits->size()) {
    return file_.bad(std::string(format::group_dim_key(kind)) + " has " +
                     std::to_string(group_dims->size()) + " layers, " +
                     format::code_bits_key(kind) + " " + std::to_string(code_bits->size()));
  }
  std::vector<CodecSpec> result(code_bits->size());
  for (std::size_t il = 0; il < result.size(); il++) {
    const std::uint32_t dim = (*group_dims)[il];
    const std::uint32_t bits = (*code_bits)[il];
    const bool exact = dim == 0 && bits == 0;
    // 0 channels: each head has groups of a size of its own.
    const bool plausible = dim <= static_cast<std::uint32_t>(kMaxGroupDim) && bits >= 1 &&
                           bits <= static_cast<std::uint32_t>(kMaxCodeBits);
    if (!exact && !plausible) {
      return file_.bad(
          "layer " + std::to_string(il) + ": groups of " + std::to_string(dim) + " channels with " +
          std::to_string(bits) +
          " bits, want 1 to 64 channels (0: by head) with 1 to 12 bits, or 0 and 0 for exact");
    }
    result[il] = {static_cast<int>(dim), static_cast<int>(bits)};
  }
  return result;
}

Status CodebookReader::read_layers() {
  const auto keys = read_specs(KvKind::kKey);
  if (!keys.ok()) {
    return keys.status();
  }
  const auto values = read_specs(KvKind::kValue);
  if (!values.ok()) {
    return values.status();
  }
  const std::size_t n_layers = keys->size();
  if (n_layers != values->size() || n_layers == 0 || n_layers > format::kMaxLayers) {
    return file_.bad("has " + std::to_string(n_layers) + " layers of keys and " +
                     std::to_string(values->size()) + " of values, want the same, 1 to " +
                     std::to_string(format::kMaxLayers));
  }
  const std::size_t n_hashes = codebook_.origin.model_fingerprint.size();
  if (n_hashes != 0 && n_hashes != n_layers) {
    return file_.bad(std::string(format::kModelFingerprint) + " has " + std::to_string(n_hashes) +
                     " layers, the codebook " + std::to_string(n_layers));
  }
  CQKV_RETURN_IF_ERROR(read_head_group_dims(KvKind::kKey));
  CQKV_RETURN_IF_ERROR(read_head_group_dims(KvKind::kValue));
  codebook_.layers.resize(n_layers);
  for (std::size_t il = 0; il < n_layers; il++) {
    CQKV_RETURN_IF_ERROR(read_tensor(il, KvKind::kKey, (*keys)[il]));
    CQKV_RETURN_IF_ERROR(read_tensor(il, KvKind::kValue, (*values)[il]));
  }
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const auto i = static_cast<std::size_t>(kind);
    if (n_head_group_dims_[i] != head_group_dims_[i].size()) {
      return file_.bad(std::string(format::head_group_dims_key(kind)) + " has " +
                       std::to_string(head_group_dims_[i].size()) + " numbers, want " +
                       std::to_string(n_head_group_dims_[i]) + ", one for each KV head");
    }
  }
  return {};
}

Status CodebookReader::read_head_group_dims(KvKind kind) {
  const char* key = format::head_group_dims_key(kind);
  if (!file_.has(key)) {
    return {};
  }
  return assign(head_group_dims_[static_cast<std::size_t>(kind)], file_.get_u32s(key));
}

// Nothing of a tensor that is not there.
Status CodebookReader::read_halves(const gguf::Tensor* tensor, std::vector<std::uint16_t>& out) {
  if (tensor == nullptr) {
    return {};
  }
  n_tensors_++;
  out.resize(tensor->n_bytes / sizeof(std::uint16_t));
  return file_.read(tensor->place, out.data(), out.size() * sizeof(std::uint16_t));
}

// A part that is not there stays empty.
Status CodebookReader::read_basis_part(const std::string& name, gguf::TensorType want,
                                       std::size_t size, std::vector<std::uint16_t>& out) {
  const gguf::Tensor* tensor = file_.find_tensor(name);
  if (tensor == nullptr) {
    return {};
  }
  if (tensor->type != want || tensor->n_bytes != size * sizeof(std::uint16_t)) {
    return file_.bad("tensor '" + name + "' has " + std::to_string(tensor->n_bytes) + " bytes of " +
                     gguf::type_name(tensor->type) + ", want " +
                     std::to_string(size * sizeof(std::uint16_t)) + " of " + gguf::type_name(want));
  }
  return read_halves(tensor, out);
}

// Keys may have an order, values a rotation.
Result<TensorBasis> CodebookReader::read_basis(std::size_t layer, KvKind kind,
                                               const TensorSpec& spec) {
  TensorBasis::Parts parts;
  const auto n_channels = static_cast<std::size_t>(spec.n_channels());
  const auto name = [&](const char* part) { return format::part_name(layer, kind, part); };
  if (kind == KvKind::kKey) {
    CQKV_RETURN_IF_ERROR(
        read_basis_part(name(format::kOrder), gguf::TensorType::kI16, n_channels, parts.order));
  } else {
    CQKV_RETURN_IF_ERROR(read_basis_part(name(format::kRotation), gguf::TensorType::kF16,
                                         n_channels * static_cast<std::size_t>(spec.head_dim()),
                                         parts.rotation));
  }
  CQKV_RETURN_IF_ERROR(read_basis_part(name(format::kMetric), gguf::TensorType::kF16,
                                       TensorBasis::metric_size(spec), parts.metric));
  return TensorBasis::create(spec, std::move(parts));
}

std::string shape_text(const std::array<std::int64_t, gguf::kMaxAxes>& ne) {
  return "[" + std::to_string(ne[0]) + ", " + std::to_string(ne[1]) + ", " + std::to_string(ne[2]) +
         ", " + std::to_string(ne[3]) + "]";
}

Result<TensorSpec> CodebookReader::uniform_shape(const gguf::Tensor& tensor,
                                                 const CodecSpec& spec) const {
  const auto& ne = tensor.ne;
  const std::string& name = tensor.name;
  if (ne[0] != spec.group_dim || ne[1] != spec.n_centroids() || ne[3] > format::kMaxKvHeads ||
      ne[2] > format::kMaxHeadDim / spec.group_dim) {
    return file_.bad("tensor '" + name + "' has shape " + shape_text(ne) + ", want [" +
                     std::to_string(spec.group_dim) + ", " + std::to_string(spec.n_centroids()) +
                     ", groups, KV heads]");
  }
  const int head_dim = static_cast<int>(ne[2]) * spec.group_dim;
  const Status legal = spec.check(head_dim);
  if (!legal.ok()) {
    return file_.bad("tensor '" + name + "': " + legal.message());
  }
  return TensorSpec(spec, static_cast<int>(ne[3]), head_dim);
}

// Heads with codes and heads without are each in a tensor of their own, if there are any.
Result<std::int64_t> CodebookReader::mixed_head_dim(const Places& places, int code_bits) const {
  const std::int64_t n_centroids = std::int64_t{1} << code_bits;
  std::int64_t head_dim = 0;
  for (const auto& [tensor, n] :
       {std::pair(places.coded, n_centroids), std::pair(places.mean, std::int64_t{1})}) {
    if (tensor == nullptr) {
      continue;
    }
    const auto& ne = tensor->ne;
    const std::int64_t found = ne[0] / n;
    if (ne[0] % n != 0 || found < 1 || found > format::kMaxHeadDim || ne[1] > format::kMaxKvHeads ||
        ne[2] != 1 || ne[3] != 1 || (head_dim != 0 && found != head_dim)) {
      return file_.bad("tensor '" + tensor->name + "' has shape " + shape_text(ne) +
                       ", want [head size * " + std::to_string(n) + ", KV heads]" +
                       (head_dim == 0 ? "" : " with a head size of " + std::to_string(head_dim)));
    }
    head_dim = found;
  }
  return head_dim;
}

// Takes the next layer's head sizes.
Result<TensorSpec> CodebookReader::mixed_shape(const Places& places, KvKind kind, int code_bits) {
  const auto head_dim = mixed_head_dim(places, code_bits);
  if (!head_dim.ok()) {
    return head_dim.status();
  }
  const auto n_heads_of = [](const gguf::Tensor* tensor) {
    return tensor == nullptr ? 0 : tensor->ne[1];
  };
  const std::int64_t n_coded = n_heads_of(places.coded);
  const std::int64_t n_heads = n_coded + n_heads_of(places.mean);
  const auto i = static_cast<std::size_t>(kind);
  const std::vector<std::uint32_t>& all = head_group_dims_[i];
  const std::size_t n_left = all.size() - n_head_group_dims_[i];
  if (n_heads > format::kMaxKvHeads || static_cast<std::size_t>(n_heads) > n_left) {
    return file_.bad(std::string(format::head_group_dims_key(kind)) + " has " +
                     std::to_string(n_left) + " numbers left for the " + std::to_string(n_heads) +
                     " KV heads of '" + places.name + "'");
  }
  std::vector<int> dims;
  std::int64_t n_found = 0;
  for (std::int64_t head = 0; head < n_heads; head++) {
    const std::uint32_t dim = all[n_head_group_dims_[i]++];
    const CodecSpec spec{static_cast<int>(std::min(dim, std::uint32_t{kMaxGroupDim + 1})),
                         code_bits};
    const Status legal = dim == 0 ? Status() : spec.check(static_cast<int>(*head_dim));
    if (!legal.ok()) {
      return file_.bad("tensor '" + places.name + "', KV head " + std::to_string(head) + ": " +
                       legal.message());
    }
    n_found += dim == 0 ? 0 : 1;
    dims.push_back(spec.group_dim);
  }
  if (n_found > 0 && places.coded == nullptr) {
    return file_.bad("has no tensor '" + places.name + "', but groups of channels for " +
                     std::to_string(n_found) + " of its KV heads");
  }
  if (n_found != n_coded) {
    return file_.bad("tensor '" + places.name + "' has " + std::to_string(n_coded) +
                     " KV heads, want the " + std::to_string(n_found) +
                     " whose groups have channels");
  }
  return TensorSpec(code_bits, dims, static_cast<int>(*head_dim));
}

Result<CodebookReader::Places> CodebookReader::find_places(std::size_t layer, KvKind kind,
                                                           const CodecSpec& spec) const {
  Places places;
  places.name = format::tensor_name(layer, kind);
  places.coded = file_.find_tensor(places.name);
  if (spec.group_dim == 0) {
    places.mean = file_.find_tensor(format::part_name(layer, kind, format::kMean));
  }
  if (places.coded == nullptr && places.mean == nullptr) {
    return file_.bad("has no tensor '" + places.name + "', but its configuration is " +
                     spec.name());
  }
  CQKV_RETURN_IF_ERROR(check_types(places));
  if (places.coded != nullptr && places.coded->type == gguf::TensorType::kI8) {
    const std::string scale = format::part_name(layer, kind, format::kScale);
    places.scale = file_.find_tensor(scale);
    if (places.scale == nullptr) {
      return file_.bad("tensor '" + places.name + "' has type i8, but there is no tensor '" +
                       scale + "'");
    }
  }
  return places;
}

Status CodebookReader::check_types(const Places& places) const {
  for (const gguf::Tensor* tensor : {places.coded, places.mean}) {
    if (tensor != nullptr && tensor->type != gguf::TensorType::kF16 &&
        (tensor == places.mean || tensor->type != gguf::TensorType::kI8)) {
      return file_.bad("tensor '" + tensor->name + "' has type " + gguf::type_name(tensor->type) +
                       ", want f16" + (tensor == places.coded ? " or i8" : ""));
    }
  }
  return {};
}

// One number for each component of the heads with codes.
Status CodebookReader::check_scale(const Places& places, const TensorSpec& spec) const {
  std::int64_t n_coded = 0;
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    n_coded += spec.coded(kv_head) ? 1 : 0;
  }
  const gguf::Tensor& scale = *places.scale;
  const auto& ne = scale.ne;
  if (scale.type != gguf::TensorType::kF16 || ne[0] != spec.head_dim() || ne[1] != n_coded ||
      ne[2] != 1 || ne[3] != 1) {
    return file_.bad("tensor '" + scale.name + "' has type " + gguf::type_name(scale.type) +
                     " and shape " + shape_text(ne) + ", want f16 and [" +
                     std::to_string(spec.head_dim()) + ", " + std::to_string(n_coded) + "]");
  }
  return {};
}

// Centroids that are bytes, as 16-bit floats.
Status CodebookReader::read_bytes(const Places& places, const TensorSpec& spec,
                                  std::vector<std::uint16_t>& centroids) {
  CQKV_RETURN_IF_ERROR(check_scale(places, spec));
  ByteCentroids bytes;
  CQKV_RETURN_IF_ERROR(read_halves(places.scale, bytes.largest));
  n_tensors_++;
  bytes.bytes.resize(places.coded->n_bytes);
  CQKV_RETURN_IF_ERROR(file_.read(places.coded->place, bytes.bytes.data(), bytes.bytes.size()));
  centroids = to_halves(spec, bytes);
  return {};
}

// Of all heads in their order.
Status CodebookReader::read_centroids(const Places& places, const TensorSpec& spec,
                                      std::vector<float>& out) {
  std::vector<std::uint16_t> centroids;
  std::vector<std::uint16_t> means;
  CQKV_RETURN_IF_ERROR(places.scale != nullptr ? read_bytes(places, spec, centroids)
                                               : read_halves(places.coded, centroids));
  CQKV_RETURN_IF_ERROR(read_halves(places.mean, means));
  const std::uint16_t* next = centroids.data();
  const std::uint16_t* next_mean = means.data();
  out.resize(centroids.size() + means.size());
  float* to = out.data();
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    const std::uint16_t*& from = spec.coded(kv_head) ? next : next_mean;
    const std::uint16_t* end = from + spec.n_centroid_values(kv_head);
    to = std::transform(from, end, to, half_to_float);
    from = end;
  }
  return {};
}

Status CodebookReader::read_tensor(std::size_t layer, KvKind kind, const CodecSpec& spec) {
  if (spec.exact()) {
    return {};
  }
  const auto places = find_places(layer, kind, spec);
  if (!places.ok()) {
    return places.status();
  }
  const auto shape = spec.group_dim > 0 ? uniform_shape(*places->coded, spec)
                                        : mixed_shape(*places, kind, spec.code_bits);
  if (!shape.ok()) {
    return shape.status();
  }
  std::vector<float> centroids;
  CQKV_RETURN_IF_ERROR(read_centroids(*places, *shape, centroids));
  auto basis = read_basis(layer, kind, *shape);
  if (!basis.ok()) {
    return file_.bad("layer " + std::to_string(layer) + ", " + std::string(kv_kind_name(kind)) +
                     ": " + basis.status().message());
  }
  auto tensor = TensorCodebook::create(*shape, centroids, *std::move(basis));
  if (!tensor.ok()) {
    return file_.bad("tensor '" + places->name + "': " + tensor.status().message());
  }
  auto& side = kind == KvKind::kKey ? codebook_.layers[layer].k : codebook_.layers[layer].v;
  side.push_back(*std::move(tensor));
  return {};
}

Result<Codebook> CodebookReader::run() {
  CQKV_RETURN_IF_ERROR(check_type_and_version());
  CQKV_RETURN_IF_ERROR(read_origin());
  CQKV_RETURN_IF_ERROR(read_counts());
  CQKV_RETURN_IF_ERROR(read_held_out());
  CQKV_RETURN_IF_ERROR(read_layers());
  CQKV_RETURN_IF_ERROR(check_only_known_names());
  const auto identity = file_.get_u64(format::kIdentity);
  if (!identity.ok()) {
    return identity.status();
  }
  if (*identity != codebook_.identity()) {
    return file_.bad("its centroids have identity " + hex(codebook_.identity()) +
                     ", its header says " + hex(*identity) + "; the file is damaged");
  }
  return std::move(codebook_);
}

}  // namespace

Result<Codebook> read_codebook(const std::string& path) {
  try {
    const auto file = gguf::Reader::open(path);
    if (!file.ok()) {
      return file.status();
    }
    return CodebookReader(*file).run();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted, path + ": not enough memory to read it");
  }
}

}  // namespace cqkv
