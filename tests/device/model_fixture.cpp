// See model_fixture.h.
#include "device/model_fixture.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "cqkv/codebook_file.h"

#include "cache/record.h"
#include "core/rng.h"
#include "device/device_fixture.h"
#include "graph/cache_store.h"
#include "support/temp_folder.h"

namespace cqkv::device {
namespace {

struct Log {
  std::mutex mutex;
  std::string text;  // guarded by mutex

  static Log& get() {
    static Log log;
    return log;
  }

  static void append(ggml_log_level /*level*/, const char* text, void* /*user_data*/) {
    const std::lock_guard lock(get().mutex);
    get().text += text;
  }
};

std::vector<llama_token> random_prompt(int n_tokens) {
  Rng rng(3);
  std::vector<llama_token> tokens(static_cast<std::size_t>(n_tokens));
  for (auto& token : tokens) {
    token = static_cast<llama_token>(rng.below(testing::ModelSpec::kVocab));
  }
  return tokens;
}

bool is_reshape(const ggml_tensor* node) {
  return node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE;
}

// The values of a tensor whose tokens are its last axis of more than one element, in order.
std::vector<float> values_of(const ggml_tensor* tensor) {
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(ggml_nelements(tensor)));
  const auto* data = static_cast<const char*>(tensor->data);
  for (std::int64_t i2 = 0; i2 < tensor->ne[2]; i2++) {
    for (std::int64_t i1 = 0; i1 < tensor->ne[1]; i1++) {
      for (std::int64_t i0 = 0; i0 < tensor->ne[0]; i0++) {
        float value = 0;
        std::memcpy(&value, data + i0 * tensor->nb[0] + i1 * tensor->nb[1] + i2 * tensor->nb[2],
                    sizeof(value));
        values.push_back(value);
      }
    }
  }
  return values;
}

}  // namespace

void use_codebooks(const std::vector<Codebook>& codebooks) {
  const testing::TempFolder folder;
  std::string paths;
  for (std::size_t i = 0; i < codebooks.size(); i++) {
    const std::string path = folder.file(std::to_string(i) + ".gguf");
    const Status status = write_codebook(codebooks[i], path);
    ASSERT_TRUE(status.ok()) << status.message();
    paths += (paths.empty() ? "" : ":") + path;
  }
  ASSERT_EQ(Backend::get().set_codebook(paths), "");
}

std::string take_log() {
  llama_log_set(Log::append, nullptr);
  const std::lock_guard lock(Log::get().mutex);
  return std::exchange(Log::get().text, std::string());
}

ModelRun::ModelRun(const testing::ModelSpec& spec, const RunOptions& options)
    : options_(options),
      model_(testing::make_model(spec, options.on_device ? Backend::get().device : nullptr)) {
  if (model_ == nullptr) {
    ADD_FAILURE() << "libllama refuses the model: " << take_log();
    return;
  }
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 256;
  params.n_batch = 128;
  params.n_ubatch = static_cast<std::uint32_t>(options.n_ubatch);
  params.n_threads = 1;  // tiny matrices: more would only wait for each other
  params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  if (options.embeddings) {
    params.embeddings = true;
    params.pooling_type = LLAMA_POOLING_TYPE_MEAN;
  }
  if (options.watch_rows) {
    params.cb_eval = on_node;
    params.cb_eval_user_data = this;
  }
  context_.reset(llama_init_from_model(model_.get(), params));
}

std::vector<float> ModelRun::evaluate() {
  std::vector<float> outputs;
  bool good = decode(0, kPromptTokens);
  if (good) {
    collect(kPromptTokens, outputs);
  }
  for (int i = 0; i < kSteps && good && !options_.embeddings; i++) {
    good = decode(kPromptTokens + i, 1);
    if (good) {
      collect(1, outputs);
    }
  }
  return good ? outputs : std::vector<float>();
}

bool ModelRun::decode(int first, int n_tokens) {
  const auto tokens = random_prompt(first + n_tokens);
  llama_batch batch = llama_batch_init(n_tokens, 0, 1);
  batch.n_tokens = n_tokens;
  for (int i = 0; i < n_tokens; i++) {
    batch.pos[i] = first + i;
    batch.token[i] = tokens.at(static_cast<std::size_t>(batch.pos[i]));
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  const bool has_cache = llama_get_memory(context_.get()) != nullptr;
  const int error =
      has_cache ? llama_decode(context_.get(), batch) : llama_encode(context_.get(), batch);
  llama_batch_free(batch);
  return error == 0;
}

void ModelRun::collect(int n_tokens, std::vector<float>& outputs) const {
  if (options_.embeddings) {
    const float* embedding = llama_get_embeddings_seq(context_.get(), 0);
    ASSERT_NE(embedding, nullptr);
    outputs.insert(outputs.end(), embedding, embedding + llama_model_n_embd(model_.get()));
    return;
  }
  for (int i = 0; i < n_tokens; i++) {
    const float* logits = llama_get_logits_ith(context_.get(), i);
    ASSERT_NE(logits, nullptr);
    outputs.insert(outputs.end(), logits, logits + testing::ModelSpec::kVocab);
  }
}

bool ModelRun::on_node(ggml_tensor* node, bool ask, void* self) {
  if (!ask) {
    static_cast<ModelRun*>(self)->watch(node);
  }
  return true;  // every node: what is rotated later is not known yet
}

void ModelRun::watch(const ggml_tensor* node) {
  const auto cache = stored_cache(node);
  if (!cache) {
    if (node->type == GGML_TYPE_F32 && node->ne[3] == 1) {
      computed_[node] = values_of(node);
    }
    return;
  }
  const ggml_tensor* made = node->src[0];
  const auto n_channels = static_cast<std::size_t>(made->ne[0]);
  while (is_reshape(made)) {
    made = made->src[0];
  }
  const bool rotated = cache->kind == KvKind::kKey && made->op == GGML_OP_ROPE;
  // As calibration reads it: what it learns from must be what the device codes.
  const auto store = read_cache_store(node);
  ASSERT_TRUE(store.ok()) << store.status().message();
  EXPECT_EQ(store->rotation != nullptr, rotated);
  const std::vector<float>& rows = computed_.at(rotated ? made->src[0] : node->src[0]);
  auto& all = watched_[{cache->kind, cache->layer}];
  for (std::size_t begin = 0; begin < rows.size(); begin += n_channels) {
    const auto token = static_cast<int>(all.size());
    const auto row = rows.begin() + static_cast<std::ptrdiff_t>(begin);
    all[token].assign(row, row + static_cast<std::ptrdiff_t>(n_channels));
  }
}

CacheRows ModelRun::decoded_rows(const Codebook& codebook, const std::vector<int>& unplaced) const {
  std::vector<std::uint8_t> state(llama_state_seq_get_size(context_.get(), 0));
  state.resize(llama_state_seq_get_data(context_.get(), state.data(), state.size(), 0));
  const std::uint64_t identity = codebook.identity();
  CacheRows result;
  // Where rows lie in a state is libllama's own matter: a record is known by its tag and
  // by the codebook's identity, 80 bits that no other bytes have.
  constexpr std::size_t kHead = 34;  // bytes of a row that hold kind, layer and identity
  RecordScratch scratch;
  for (std::size_t at = 0; at + kHead <= state.size(); at++) {
    const std::uint8_t* row = state.data() + at;
    if (std::memcmp(row, &kRecordTag, sizeof(kRecordTag)) != 0) {
      continue;
    }
    const std::vector<std::uint8_t> head = record_of({row, kHead});
    if (std::memcmp(head.data() + 8, &identity, sizeof(identity)) != 0) {
      continue;
    }
    std::uint16_t layer = 0;
    std::memcpy(&layer, head.data() + 2, sizeof(layer));
    RecordHeader header;
    header.kind = (head[1] & 1U) == 0 ? KvKind::kKey : KvKind::kValue;
    header.layer = layer;
    header.identity = identity;
    const TensorCodebook& tensor = *codebook.layers.at(layer).get(header.kind);
    const CodeLayout layout(tensor.spec());
    std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
    const std::size_t row_bytes = 2 * static_cast<std::size_t>(tensor.n_channels());
    const auto content = read_record(layout, {row, row_bytes}, header, codes.data(), scratch);
    EXPECT_TRUE(content.ok()) << content.status().message();
    auto& rows = result[{header.kind, header.layer}];
    const bool placed = std::count(unplaced.begin(), unplaced.end(), header.layer) == 0;
    const int token = placed ? header.position : static_cast<int>(rows.size());
    EXPECT_FALSE(rows.contains(token)) << "layer " << layer << ": two cells hold token " << token;
    rows[token].resize(static_cast<std::size_t>(tensor.n_channels()));
    tensor.decode(codes.data(), 1, rows[token].data(), rows[token].size());
  }
  return result;
}

}  // namespace cqkv::device
