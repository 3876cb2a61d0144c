// Construction, encoding and decoding of codebooks; see cqkv/codebook.h.
#include "cqkv/codebook.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "core/half.h"
#include "core/hash.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

// Where a centroid value is, for messages.
std::string at_group(std::size_t index, const TensorSpec& spec) {
  int kv_head = 0;
  while (index >= spec.n_centroid_values(kv_head)) {
    index -= spec.n_centroid_values(kv_head++);
  }
  const std::string head = "KV head " + std::to_string(kv_head);
  const std::size_t per_group =
      static_cast<std::size_t>(spec.n_centroids()) * spec.group_dim(kv_head);
  return spec.coded(kv_head) ? head + ", group " + std::to_string(index / per_group)
                             : head + ", its mean";
}

std::size_t n_centroid_values(const TensorSpec& spec) {
  std::size_t n = 0;
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    n += spec.n_centroid_values(kv_head);
  }
  return n;
}

int padded_centroids(const TensorSpec& spec) {
  return (spec.n_centroids() + kernels::kEncodeLanes - 1) / kernels::kEncodeLanes *
         kernels::kEncodeLanes;
}

// Rows whose groups are brought into the metric together.
constexpr std::size_t kMetricRows = 16;

// The centroids in the metric of their groups, as encode_group finds the nearest of them.
std::vector<std::uint16_t> in_metric(std::vector<std::uint16_t> centroids, const TensorSpec& spec,
                                     const TensorBasis& basis) {
  if (!basis.has_metric()) {
    return centroids;
  }
  std::uint16_t* at = centroids.data();
  float centroid[kMaxGroupDim];
  float z[kMaxGroupDim];
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    const int dim = spec.group_dim(kv_head);
    if (!spec.coded(kv_head)) {  // nothing is near or far
      at += spec.head_dim();
      continue;
    }
    for (int i = 0; i < spec.n_groups(kv_head) * spec.n_centroids(); i++, at += dim) {
      std::transform(at, at + dim, centroid, half_to_float);
      basis.to_metric(kv_head, i / spec.n_centroids(), centroid, z);
      std::transform(z, z + dim, at, float_to_half);
    }
  }
  return centroids;
}

// Some groups at a time, since they are short.
void decode_head(const TensorCodebook& codebook, int kv_head, const std::uint16_t* codes,
                 float* row) {
  std::uint16_t halves[kMaxGroupDim * 4];
  const auto dim = static_cast<std::size_t>(codebook.spec().group_dim(kv_head));
  const int most = static_cast<int>(std::size(halves) / dim);
  const int n_groups = codebook.spec().n_groups(kv_head);
  for (int first = 0; first < n_groups; first += most) {
    const int n = std::min(most, n_groups - first);
    for (int g = 0; g < n; g++) {
      const int code = codebook.spec().coded(kv_head) ? codes[first + g] : 0;
      std::copy_n(codebook.group(kv_head, first + g) + code * dim, dim, halves + g * dim);
    }
    kernels::active().half_to_float_n(halves, n * dim, row + first * dim);
  }
}

// The hash of a side, after that of those before it; null: exact.
std::uint64_t hash_side(const TensorCodebook* tensor, std::uint64_t hash) {
  if (tensor == nullptr) {
    const std::int32_t nothing[4] = {0, 0, 0, 0};
    return hash_bytes(nothing, sizeof(nothing), hash);
  }
  const TensorSpec& spec = tensor->spec();
  const std::int32_t shape[4] = {spec.group_dims().front(), spec.code_bits(), spec.n_kv_heads(),
                                 spec.head_dim()};
  hash = hash_bytes(shape, sizeof(shape), hash);
  if (!spec.uniform()) {  // heads that are alike were known before others were
    hash = hash_bytes(spec.group_dims().data(), spec.group_dims().size() * sizeof(int), hash);
  }
  if (!tensor->basis().plain()) {  // neither was a basis
    const TensorBasis::Parts& parts = tensor->basis().parts();
    for (const auto* part : {&parts.order, &parts.rotation, &parts.metric}) {
      const auto size = static_cast<std::uint64_t>(part->size());
      hash = hash_bytes(&size, sizeof(size), hash);
      hash = hash_bytes(part->data(), size * sizeof(std::uint16_t), hash);
    }
  }
  // As 32-bit floats, by which codebooks have always been known.
  std::vector<float> values(tensor->centroids().size());
  kernels::active().half_to_float_n(tensor->centroids().data(), values.size(), values.data());
  return hash_bytes(values.data(), values.size() * sizeof(float), hash);
}

Status check_spec(const TensorSpec& spec) {
  if (spec.n_kv_heads() == 0) {
    return invalid_argument("codebook: got no KV heads, want at least 1");
  }
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    CQKV_RETURN_IF_ERROR(spec.spec(kv_head).check(spec.head_dim()));
  }
  if (spec.code_bits() == 0) {
    return invalid_argument("codebook: configuration 'exact' has no centroids");
  }
  return {};
}

}  // namespace

Result<TensorCodebook> TensorCodebook::create(CodecSpec spec, int n_kv_heads, int head_dim,
                                              std::span<const float> centroids) {
  CQKV_RETURN_IF_ERROR(spec.check(head_dim));
  if (spec.exact()) {
    return invalid_argument("codebook: configuration 'exact' has no centroids");
  }
  if (n_kv_heads <= 0) {
    return invalid_argument("codebook: got " + std::to_string(n_kv_heads) +
                            " KV heads, want at least 1");
  }
  return create(TensorSpec(spec, n_kv_heads, head_dim), centroids);
}

Result<TensorCodebook> TensorCodebook::create(const TensorSpec& spec,
                                              std::span<const float> centroids, TensorBasis basis) {
  CQKV_RETURN_IF_ERROR(check_spec(spec));
  const std::size_t want = n_centroid_values(spec);
  if (centroids.size() != want) {
    return invalid_argument(
        "codebook " + spec.name() + ": got " + std::to_string(centroids.size()) +
        " centroid values, want head size * 2^bits for each KV head with codes and head size for "
        "others, " +
        std::to_string(want));
  }
  TensorCodebook result;
  result.spec_ = spec;
  CQKV_RETURN_IF_ERROR(result.set_centroids(centroids));
  if (basis.plain()) {
    basis = TensorBasis::create(spec, {}).value();
  } else if (!(basis.spec() == spec)) {
    return invalid_argument(
        "codebook " + spec.name() + ": its basis is for " + basis.spec().name() + " of " +
        std::to_string(basis.spec().n_kv_heads()) + " KV heads of " +
        std::to_string(basis.spec().head_dim()) + " channels, want the codebook's own shape, " +
        std::to_string(spec.n_kv_heads()) + " of " + std::to_string(spec.head_dim()));
  }
  result.basis_ = std::move(basis);
  const std::vector<std::uint16_t> measured = in_metric(result.centroids_, spec, result.basis_);
  for (const std::uint16_t value : measured) {
    if (!std::isfinite(half_to_float(value))) {
      return invalid_argument("codebook " + spec.name() +
                              ": a centroid is beyond the 16-bit floats in the basis' metric");
    }
  }
  result.set_transposed(measured);
  return result;
}

Status TensorCodebook::set_centroids(std::span<const float> centroids) {
  centroids_.resize(centroids.size());
  for (std::size_t i = 0; i < centroids.size(); i++) {
    centroids_[i] = float_to_half(centroids[i]);
    if (!std::isfinite(half_to_float(centroids_[i]))) {
      return invalid_argument("codebook " + spec_.name() + ": centroid value " +
                              std::to_string(centroids[i]) + " (" + at_group(i, spec_) +
                              ") is not finite as a 16-bit float");
    }
  }
  std::size_t first = 0;
  for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
    first_.push_back(first);
    first += spec_.n_centroid_values(kv_head);
  }
  return {};
}

// [group, centroid, group_dim] -> [group, group_dim, padded centroid], as encode_group wants them:
// padding is never nearest.
void TensorCodebook::set_transposed(const std::vector<std::uint16_t>& centroids) {
  const auto padded = static_cast<std::size_t>(padded_centroids(spec_));
  const auto n = static_cast<std::size_t>(spec_.n_centroids());
  std::size_t end = 0;
  for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
    first_transposed_.push_back(end);
    end += spec_.coded(kv_head) ? static_cast<std::size_t>(head_dim()) * padded : 0;
  }
  transposed_.assign(end, kHalfInfinity);
  for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
    const auto dim = static_cast<std::size_t>(spec_.group_dim(kv_head));
    const std::uint16_t* from = centroids.data() + first_[static_cast<std::size_t>(kv_head)];
    std::uint16_t* to = transposed_.data() + first_transposed_[static_cast<std::size_t>(kv_head)];
    for (int g = 0; g < spec_.n_codes(kv_head); g++, from += n * dim, to += dim * padded) {
      for (std::size_t i = 0; i < n * dim; i++) {
        to[i % dim * padded + i / dim] = from[i];
      }
    }
  }
}

std::vector<float> TensorCodebook::group_floats(int kv_head, int group) const {
  std::vector<float> floats(static_cast<std::size_t>(spec_.n_centroids(kv_head)) *
                            spec_.group_dim(kv_head));
  kernels::active().half_to_float_n(this->group(kv_head, group), floats.size(), floats.data());
  return floats;
}

void TensorCodebook::encode(const float* rows, std::size_t n_rows, std::size_t row_stride,
                            std::uint16_t* codes) const {
  if (!basis_.has_order() && !basis_.has_rotation()) {
    encode_groups(rows, n_rows, row_stride, 0, n_codes(), codes);
    return;
  }
  std::vector<float> components(static_cast<std::size_t>(n_channels()));
  for (std::size_t r = 0; r < n_rows; r++) {
    basis_.to_components(rows + r * row_stride, components.data());
    encode_groups(components.data(), 1, components.size(), 0, n_codes(),
                  codes + r * static_cast<std::size_t>(n_codes()));
  }
}

void TensorCodebook::encode_groups(const float* components, std::size_t n_rows,
                                   std::size_t row_stride, int first, int n,
                                   std::uint16_t* codes) const {
  for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
    const int begin = spec_.first_code(kv_head);
    const int last = std::min(first + n, begin + spec_.n_codes(kv_head));
    for (int g = std::max(first, begin); g < last; g++) {
      encode_group(kv_head, g - begin, components + first_channel(kv_head, g - begin), n_rows,
                   row_stride, codes + g);
    }
  }
}

// `in` is the first component of the group in the first row, `codes` its code there.
void TensorCodebook::encode_group(int kv_head, int group, const float* in, std::size_t n_rows,
                                  std::size_t row_stride, std::uint16_t* codes) const {
  const auto& kernel = kernels::active();
  const int dim = spec_.group_dim(kv_head);
  const int padded = padded_centroids(spec_);
  const auto code_stride = static_cast<std::size_t>(n_codes());
  const std::uint16_t* table = transposed_.data() +
                               first_transposed_[static_cast<std::size_t>(kv_head)] +
                               static_cast<std::size_t>(group) * dim * padded;
  if (!basis_.has_metric()) {
    kernel.encode_group(table, dim, padded, in, row_stride, n_rows, codes, code_stride);
    return;
  }
  float z[kMetricRows * kMaxGroupDim];
  for (std::size_t r = 0; r < n_rows; r += kMetricRows) {
    const std::size_t n = std::min(kMetricRows, n_rows - r);
    for (std::size_t i = 0; i < n; i++) {
      basis_.to_metric(kv_head, group, in + (r + i) * row_stride, z + i * dim);
    }
    kernel.encode_group(table, dim, padded, z, static_cast<std::size_t>(dim), n,
                        codes + r * code_stride, code_stride);
  }
}

void TensorCodebook::decode(const std::uint16_t* codes, std::size_t n_rows, float* rows,
                            std::size_t row_stride) const {
  if (!basis_.has_order() && !basis_.has_rotation()) {
    decode_components(codes, n_rows, rows, row_stride);
    return;
  }
  std::vector<float> components(static_cast<std::size_t>(n_channels()));
  for (std::size_t r = 0; r < n_rows; r++) {
    decode_components(codes + r * static_cast<std::size_t>(n_codes()), 1, components.data(),
                      components.size());
    basis_.to_channels(components.data(), rows + r * row_stride);
  }
}

void TensorCodebook::decode_components(const std::uint16_t* codes, std::size_t n_rows, float* rows,
                                       std::size_t row_stride) const {
  for (std::size_t r = 0; r < n_rows; r++) {
    const std::uint16_t* row_codes = codes + r * static_cast<std::size_t>(n_codes());
    for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
      decode_head(*this, kv_head, row_codes + spec_.first_code(kv_head),
                  rows + r * row_stride + first_channel(kv_head, 0));
    }
  }
}

std::uint64_t Codebook::identity() const {
  std::uint64_t hash = hash_bytes("cqkv", 4);
  for (const auto& layer : layers) {
    hash = hash_side(layer.get(KvKind::kKey), hash);
    hash = hash_side(layer.get(KvKind::kValue), hash);
  }
  return hash;
}

double Codebook::bits_per_channel() const {
  double bits = 0;
  double channels = 0;
  for (const auto& layer : layers) {
    const TensorCodebook* k = layer.get(KvKind::kKey);
    const TensorCodebook* v = layer.get(KvKind::kValue);
    const TensorCodebook* known = k != nullptr ? k : v;
    if (known == nullptr) {
      continue;
    }
    for (const TensorCodebook* side : {k, v}) {
      const int n = side != nullptr ? side->n_channels() : known->n_channels();
      channels += n;
      bits += n * (side != nullptr ? side->spec().bits_per_channel() : 16.0);
    }
  }
  return channels == 0 ? 16.0 : bits / channels;
}

std::size_t Codebook::centroid_bytes() const {
  std::size_t bytes = 0;
  for (const auto& layer : layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      if (const TensorCodebook* tensor = layer.get(kind)) {
        bytes += tensor->centroids().size_bytes() + tensor->basis().bytes();
      }
    }
  }
  return bytes;
}

}  // namespace cqkv
