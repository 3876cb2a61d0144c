// See kv_shape.h.
#include "codebook_file/kv_shape.h"

#include <algorithm>
#include <filesystem>
#include <new>
#include <optional>
#include <utility>

#include "codebook_file/format.h"
#include "gguf/reader.h"

namespace cqkv {
namespace {

class ShapeReader {
 public:
  explicit ShapeReader(const gguf::Reader& file) : file_(file) { shape_.path = file.path(); }

  Result<ModelKvShape> run();

 private:
  std::string key(const char* name) const { return shape_.architecture + "." + name; }

  /// One value, or one a layer, as every layer's value; nothing if the key is absent.
  Result<std::optional<std::vector<std::uint32_t>>> per_layer(const char* name) const;

  Result<std::uint32_t> number_or_0(const char* name) const;
  Status read_names();
  Result<std::uint32_t> head_dim(const char* name, std::uint32_t n_heads) const;
  Status read_heads(std::uint32_t n_layers);

  const gguf::Reader& file_;
  ModelKvShape shape_;
};

Result<std::optional<std::vector<std::uint32_t>>> ShapeReader::per_layer(const char* name) const {
  const std::string full = key(name);
  const gguf::Value* found = file_.find(full);
  if (found == nullptr) {
    return std::optional<std::vector<std::uint32_t>>();
  }
  if (!found->is_array) {
    const auto value = file_.get_u32(full);
    if (!value.ok()) {
      return value.status();
    }
    return std::optional(std::vector<std::uint32_t>(1, *value));
  }
  if (found->type != gguf::ValueType::kUint32 && found->type != gguf::ValueType::kInt32) {
    return file_.bad("key '" + full + "' is an array of " + gguf::type_name(found->type) +
                     ", want 32-bit integers");
  }
  const auto numbers = file_.read_integers(full, *found);
  if (!numbers.ok()) {
    return numbers.status();
  }
  std::vector<std::uint32_t> values;
  for (const std::int64_t number : *numbers) {
    values.push_back(static_cast<std::uint32_t>(number));
  }
  return std::optional(std::move(values));
}

Result<std::uint32_t> ShapeReader::number_or_0(const char* name) const {
  return file_.has(key(name)) ? file_.get_u32(key(name)) : Result<std::uint32_t>(0U);
}

Status check_type(const gguf::Reader& fields) {
  if (!fields.has(format::kGeneralType)) {
    return {};  // old models have none
  }
  const auto type = fields.get_string(format::kGeneralType);
  if (!type.ok()) {
    return type.status();
  }
  if (*type == format::kType) {
    return fields.bad("is a codebook (of type '" + *type + "'), want the model that it is for");
  }
  return *type == "model" ? Status()
                          : fields.bad("is a GGUF of type '" + *type + "', want a model");
}

Status ShapeReader::read_names() {
  CQKV_RETURN_IF_ERROR(check_type(file_));
  auto architecture = file_.get_string(format::kGeneralArchitecture);
  if (!architecture.ok()) {
    return architecture.status();
  }
  auto name = file_.get_string_or_empty(format::kGeneralName);
  if (!name.ok()) {
    return name.status();
  }
  shape_.architecture = *std::move(architecture);
  shape_.name =
      name->empty() ? std::filesystem::path(shape_.path).filename().string() : *std::move(name);
  return {};
}

Result<std::uint32_t> ShapeReader::head_dim(const char* name, std::uint32_t n_heads) const {
  if (file_.has(key(name))) {
    return file_.get_u32(key(name));
  }
  const auto n_embd = file_.get_u32(key("embedding_length"));
  if (!n_embd.ok()) {
    return n_embd.status();
  }
  return n_heads == 0 ? 0 : *n_embd / n_heads;
}

Status ShapeReader::read_heads(std::uint32_t n_layers) {
  const auto heads = per_layer("attention.head_count");
  if (!heads.ok()) {
    return heads.status();
  }
  const auto kv_heads = per_layer("attention.head_count_kv");
  if (!kv_heads.ok()) {
    return kv_heads.status();
  }
  if (!heads->has_value()) {
    return file_.bad("has no key '" + key("attention.head_count") + "'");
  }
  const std::vector<std::uint32_t>& all = **heads;
  const std::vector<std::uint32_t>& all_kv = kv_heads->has_value() ? **kv_heads : all;
  const auto at = [](const std::vector<std::uint32_t>& values, std::size_t il) {
    return values.size() == 1 ? values[0] : il < values.size() ? values[il] : 0;
  };
  const auto interval = number_or_0("full_attention_interval");
  const auto n_draft_layers = number_or_0("nextn_predict_layers");
  if (!interval.ok() || !n_draft_layers.ok()) {
    return interval.ok() ? n_draft_layers.status() : interval.status();
  }
  const std::uint32_t most = all.empty() ? 0 : *std::max_element(all.begin(), all.end());
  const auto k_dim = head_dim("attention.key_length", most);
  if (!k_dim.ok()) {
    return k_dim.status();
  }
  const auto v_dim = head_dim("attention.value_length", most);
  if (!v_dim.ok()) {
    return v_dim.status();
  }
  for (std::uint32_t il = 0; il < n_layers; il++) {
    // Hybrid models: all layers but every so manieth have a recurrent state instead. Those for
    // predicting several tokens stand behind them and have attention.
    const bool recurrent =
        *interval > 1 && (il + 1) % *interval != 0 && il + *n_draft_layers < n_layers;
    const std::uint32_t n = recurrent ? 0 : at(all_kv, il);
    if (n > static_cast<std::uint32_t>(format::kMaxKvHeads) ||
        std::max(*k_dim, *v_dim) > static_cast<std::uint32_t>(format::kMaxHeadDim)) {
      return file_.bad("layer " + std::to_string(il) + " has " + std::to_string(n) +
                       " KV heads of " + std::to_string(*k_dim) + " channels, which is too many");
    }
    shape_.layers.push_back(
        {static_cast<int>(n), static_cast<int>(*k_dim), static_cast<int>(*v_dim)});
  }
  return {};
}

Result<ModelKvShape> ShapeReader::run() {
  CQKV_RETURN_IF_ERROR(read_names());
  const auto n_layers = file_.get_u32(key("block_count"));
  if (!n_layers.ok()) {
    return n_layers.status();
  }
  if (*n_layers == 0 || *n_layers > format::kMaxLayers) {
    return file_.bad("has " + std::to_string(*n_layers) + " layers, want 1 to " +
                     std::to_string(format::kMaxLayers));
  }
  CQKV_RETURN_IF_ERROR(read_heads(*n_layers));
  return std::move(shape_);
}

std::string quoted(const std::string& name) {
  return name.empty() ? "(no name)" : "'" + name + "'";
}

std::string heads_text(int n_kv_heads, int head_dim) {
  return std::to_string(n_kv_heads) + " KV heads of " + std::to_string(head_dim);
}

}  // namespace

Status check_is_model(const std::string& path) {
  try {
    const auto file = gguf::Reader::open(path);
    return file.ok() ? check_type(*file) : file.status();
  } catch (const std::bad_alloc&) {
    return {StatusCode::kResourceExhausted, path + ": not enough memory for its header"};
  }
}

Result<ModelKvShape> read_kv_shape(const std::string& path) {
  try {
    const auto file = gguf::Reader::open(path);
    if (!file.ok()) {
      return file.status();
    }
    return ShapeReader(*file).run();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted, path + ": not enough memory for its header");
  }
}

Status check_fits(const Codebook& codebook, const std::string& codebook_path,
                  const ModelKvShape& model) {
  const std::string names = "codebook " + codebook_path + " was made for " +
                            quoted(codebook.origin.model_name) + ", the model is " +
                            quoted(model.name) + ": ";
  const std::string advice = "; use its own codebook or make one with cqkv calibrate";
  if (codebook.origin.architecture != model.architecture) {
    return {StatusCode::kMismatch, names + "architecture " + quoted(codebook.origin.architecture) +
                                       " against " + quoted(model.architecture) + advice};
  }
  if (codebook.layers.size() != model.layers.size()) {
    return {StatusCode::kMismatch, names + std::to_string(codebook.layers.size()) +
                                       " layers against " + std::to_string(model.layers.size()) +
                                       advice};
  }
  for (std::size_t il = 0; il < model.layers.size(); il++) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const TensorCodebook* tensor = codebook.layers[il].get(kind);
      const LayerKvShape& layer = model.layers[il];
      const int head_dim = kind == KvKind::kKey ? layer.k_head_dim : layer.v_head_dim;
      if (tensor != nullptr &&
          (tensor->n_kv_heads() != layer.n_kv_heads || tensor->head_dim() != head_dim)) {
        std::string message = names + "layer " + std::to_string(il) + " has ";
        message += heads_text(tensor->n_kv_heads(), tensor->head_dim()) + " ";
        message += kv_kind_name(kind);
        message += " channels against " + heads_text(layer.n_kv_heads, head_dim) + advice;
        return {StatusCode::kMismatch, message};
      }
    }
  }
  return {};
}

}  // namespace cqkv
