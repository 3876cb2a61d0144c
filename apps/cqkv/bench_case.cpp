// See bench_case.h.
#include "bench_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

#include "core/half.h"
#include "core/rng.h"
#include "kernels/dispatch.h"

namespace cqkv::app {
namespace {

constexpr std::uint64_t kSeed = 1;
constexpr std::int64_t kMaxCells = std::int64_t{1} << 24;

// Any bytes are legal codes.
std::vector<std::uint8_t> random_bytes(std::size_t n, std::uint64_t stream) {
  Rng rng(kSeed, stream);
  std::vector<std::uint8_t> bytes(n);
  for (std::size_t i = 0; i < n; i += sizeof(std::uint64_t)) {
    const std::uint64_t word = rng.next();
    std::memcpy(bytes.data() + i, &word, std::min(sizeof word, n - i));
  }
  return bytes;
}

// Query i of one stream sees cell t.
bool sees(const BenchShape& shape, int i, int t) {
  const int n_mixed = shape.unified ? shape.n_seq : 1;
  const int last = shape.n_tokens - shape.n_queries + i % shape.n_queries;
  return t % n_mixed == i / shape.n_queries && t / n_mixed <= last;
}

}  // namespace

std::vector<float> random_floats(std::size_t n, std::uint64_t stream) {
  Rng rng(kSeed, stream);
  std::vector<float> values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.normal());
  }
  return values;
}

Result<std::vector<CodecSpec>> parse_codecs(const std::vector<std::string>& names, int head_dim) {
  std::vector<CodecSpec> specs;
  for (const std::string& name : names) {
    const auto spec = CodecSpec::parse(name);
    if (!spec.ok()) {
      return spec.status();
    }
    if (spec->exact()) {
      return invalid_argument("--codec: got exact, want codes, as 8c8b");
    }
    CQKV_RETURN_IF_ERROR(spec->check(head_dim));
    specs.push_back(*spec);
  }
  return specs;
}

Result<TensorCodebook> random_codebook(CodecSpec spec, int n_kv_heads, int head_dim,
                                       std::uint64_t stream) {
  CQKV_RETURN_IF_ERROR(spec.check(head_dim));
  const std::size_t n_floats = static_cast<std::size_t>(n_kv_heads) * head_dim *
                               static_cast<std::size_t>(spec.n_centroids());
  return TensorCodebook::create(spec, n_kv_heads, head_dim, random_floats(n_floats, stream));
}

double BenchShape::n_scores() const {
  const double queries = n_queries;
  const double visible = queries * (n_tokens - queries) + queries * (queries + 1) / 2;
  return visible * n_seq * n_heads() * n_layers;
}

Status BenchShape::check() const {
  if (n_queries > n_tokens) {
    return invalid_argument("--queries: got " + std::to_string(n_queries) + ", want at most the " +
                            std::to_string(n_tokens) + " tokens of a sequence");
  }
  const std::int64_t n_cells = std::int64_t{n_tokens} * n_seq;
  if (n_cells > kMaxCells) {
    return invalid_argument("--tokens, --seqs: got " + std::to_string(n_cells) +
                            " tokens in all, want at most " + std::to_string(kMaxCells));
  }
  if (head_dim % 2 != 0) {
    return invalid_argument("--head-dim: got " + std::to_string(head_dim) +
                            ", want an even number: channels are rotated in pairs");
  }
  return {};
}

BenchInputs::BenchInputs(const BenchShape& shape)
    : queries(random_floats(shape.query_floats(), 0)),
      positions(static_cast<std::size_t>(shape.stream_cells())) {
  std::vector<std::uint16_t> stream_mask;
  for (int i = 0; i < shape.stream_queries(); i++) {
    for (int t = 0; t < shape.stream_cells(); t++) {
      stream_mask.push_back(sees(shape, i, t) ? 0 : kHalfMinusInfinity);
    }
  }
  for (int stream = 0; stream < shape.n_streams(); stream++) {
    mask.insert(mask.end(), stream_mask.begin(), stream_mask.end());
  }
  for (std::size_t t = 0; t < positions.size(); t++) {
    positions[t] =
        shape.first_position + static_cast<std::int32_t>(t) / (shape.unified ? shape.n_seq : 1);
  }
}

Result<BenchCodes> BenchCodes::random(const BenchShape& shape, CodecSpec spec, int n_key_heads) {
  auto k = random_codebook(spec, shape.n_kv_heads, shape.head_dim, 1);
  auto v = random_codebook(spec, shape.n_kv_heads, shape.head_dim, 2);
  if (!k.ok() || !v.ok()) {
    return k.ok() ? v.status() : k.status();
  }
  BenchCodes codes = of(shape, *std::move(k), *std::move(v));
  if (n_key_heads > 0) {
    CQKV_RETURN_IF_ERROR(codes.predict(n_key_heads));
  }
  return codes;
}

BenchCodes BenchCodes::of(const BenchShape& shape, TensorCodebook keys, TensorCodebook values) {
  return {{shape, std::move(keys), 3}, {shape, std::move(values), 4}};
}

BenchCodes::Side::Side(const BenchShape& shape, TensorCodebook tensor, std::uint64_t stream)
    : codebook(std::move(tensor)),
      layout(codebook.spec()),
      stream_bytes(layout.tensor_bytes(static_cast<std::size_t>(shape.stream_cells()))),
      codes(random_bytes(stream_bytes * static_cast<std::size_t>(shape.n_streams()), stream)) {
}

BenchCodes::BenchCodes(Side keys, Side values)
    : keys_(std::move(keys)), values_(std::move(values)) {
}

// What is predicted is as large as what the codes say.
Status BenchCodes::predict(int n_key_heads) {
  const CodeLayout& layout = keys_.layout;
  const int n_sums = n_key_heads * layout.spec.head_dim();
  std::vector<float> matrices =
      random_floats(static_cast<std::size_t>(n_sums) * layout.n_channels(), 5);
  for (float& element : matrices) {
    element /= std::sqrt(static_cast<float>(n_sums));
  }
  std::vector<int> groups(static_cast<std::size_t>(n_key_heads) * layout.n_groups(0));
  std::iota(groups.begin(), groups.end(), 0);
  auto sums = KeySums::create(keys_.codebook, std::move(groups), layout.spec.head_dim(), matrices,
                              kernels::active());
  if (!sums.ok()) {
    return sums.status();
  }
  key_sums_ = *std::move(sums);
  return {};
}

void BenchCodes::decode(KvKind kind, int stream_index, int cell, float* row) const {
  decode_codes(kind, stream_index, cell, row);
  if (kind == KvKind::kKey || !key_sums_) {
    return;
  }
  const TensorSpec& spec = values_.layout.spec;
  std::vector<float> keys(static_cast<std::size_t>(keys_.layout.n_channels()));
  decode_codes(KvKind::kKey, stream_index, cell, keys.data());
  for (int head = 0; head < spec.n_kv_heads(); head++, row += spec.head_dim()) {
    const float* column = key_sums_->matrix(head);
    for (int c = 0; c < key_sums_->n_channels(); c++, column += key_sums_->matrix_stride()) {
      for (int d = 0; d < spec.head_dim(); d++) {
        row[d] += column[d] * keys[static_cast<std::size_t>(c)];
      }
    }
  }
}

void BenchCodes::decode_codes(KvKind kind, int stream_index, int cell, float* row) const {
  const CodeLayout& layout = side(kind).layout;
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
  get_codes(layout, stream(kind, stream_index), static_cast<std::size_t>(cell), codes.data());
  codebook(kind).decode(codes.data(), 1, row, static_cast<std::size_t>(layout.n_channels()));
}

Status check_benchable(const Codebook& codebook, const std::string& path) {
  if (codebook.layers.empty()) {
    return invalid_argument(path + ": has no layers");
  }
  const TensorCodebook* first = codebook.layers.front().get(KvKind::kKey);
  for (const LayerCodebook& layer : codebook.layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const TensorCodebook* tensor = layer.get(kind);
      if (tensor == nullptr || tensor->head_dim() != first->head_dim() ||
          tensor->n_kv_heads() != first->n_kv_heads()) {
        return unsupported(path +
                           ": has exact sides or heads of several sizes; want keys and values of "
                           "all layers coded and alike");
      }
    }
  }
  return {};
}

RopeMode rope_mode_of(const Codebook& codebook) {
  const TensorCodebook& keys = *codebook.layers.front().get(KvKind::kKey);
  for (int kv = 0; kv < keys.n_kv_heads(); kv++) {
    for (int i = 0; keys.basis().has_order() && i + 1 < keys.head_dim(); i += 2) {
      const auto* pair = keys.basis().order(kv) + i;
      if (pair[0] % 2 != 0 || pair[1] != pair[0] + 1) {
        return RopeMode::kNeox;
      }
    }
  }
  return keys.basis().has_order() ? RopeMode::kNormal : RopeMode::kNeox;
}

RopeParams bench_rope(const BenchShape& shape) {
  RopeParams params;
  params.n_dims = shape.head_dim;
  params.mode = shape.rope_mode;
  params.freq_base = shape.rope_base;
  return params;
}

}  // namespace cqkv::app
