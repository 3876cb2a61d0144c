// The C interface (include/cqkv.h): arguments are checked, exceptions end here, and the words of an
// error are kept for the thread. What is done is codebook/, codebook_file/ and cache/kv_cache.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/codebook_file.h"
#include "cqkv/isa.h"
#include "cqkv/status.h"

#include "cache/kv_cache.h"
#include "cache/window_pool.h"
#include "codebook/learn.h"
#include "core/half.h"
#include "core/round_up.h"
#include "core/side_text.h"
#include "core/thread_pool.h"
#include "cqkv.h"

using cqkv::CacheOptions;
using cqkv::Codebook;
using cqkv::invalid_argument;
using cqkv::KvCache;
using cqkv::KvKind;
using cqkv::Result;
using cqkv::Status;
using cqkv::StatusCode;
using cqkv::TensorCodebook;

struct cqkv_codebook {
  Codebook codebook;
};

struct cqkv_cache {
  // Of a saved cell, in the order in which the cache has its tensors.
  struct Side {
    KvKind kind;
    int layer;
    std::size_t row_bytes;
  };

  cqkv_cache(const Codebook& book, const CacheOptions& cache_options, int n_threads)
      : codebook(book), threads(n_threads), cache(cache_options) {}

  const Codebook& codebook;
  cqkv::ThreadPool threads;
  KvCache cache;
  cqkv::CacheWorkspace workspace;
  std::vector<Side> sides;
  std::size_t memory_bytes = 0;
  // The tokens of the step.
  std::vector<std::int32_t> positions;
  std::vector<std::size_t> cells;
  std::vector<std::uint16_t> mask;
  std::vector<cqkv::StreamAttention> streams;
};

namespace {

thread_local std::string last_error;

cqkv_status report(StatusCode code, const char* message) {
  try {
    last_error = message;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return static_cast<cqkv_status>(code);
}

static_assert(static_cast<int>(StatusCode::kInternal) == CQKV_INTERNAL);
static_assert(static_cast<int>(StatusCode::kUnsupported) == CQKV_UNSUPPORTED);

// Runs what returns a Status; nothing leaves it but a number.
template <typename Function>
cqkv_status guarded(const Function& function) {
  try {
    const Status status = function();
    return status.ok() ? CQKV_OK : report(status.code(), status.message().c_str());
  } catch (const std::bad_alloc&) {
    return report(StatusCode::kResourceExhausted, "out of memory");
  } catch (const std::system_error&) {
    return report(StatusCode::kResourceExhausted, "the system gives no more threads");
  } catch (const std::exception& error) {
    return report(StatusCode::kInternal, error.what());
  }
}

Status null_argument(const char* name) {
  return invalid_argument(std::string(name) + ": got null");
}

// Options of this or another version: what the caller does not know keeps the default in `out`.
template <typename Options>
Status take_options(const Options* given, Options& out) {
  if (given == nullptr) {
    return null_argument("options");
  }
  if (given->size < sizeof(std::size_t) || given->size > sizeof(Options)) {
    return invalid_argument("options: their size is " + std::to_string(given->size) +
                            ", want up to " + std::to_string(sizeof(Options)) +
                            "; begin with the _INIT macro");
  }
  std::memcpy(&out, given, given->size);
  return {};
}

KvKind kind_of(cqkv_kind kind) {
  return kind == CQKV_KEY ? KvKind::kKey : KvKind::kValue;
}

Status check_layer(const cqkv_codebook* codebook, int layer) {
  if (codebook == nullptr) {
    return null_argument("codebook");
  }
  const auto n_layers = static_cast<int>(codebook->codebook.layers.size());
  return layer >= 0 && layer < n_layers
             ? Status()
             : invalid_argument("layer: got " + std::to_string(layer) + ", the codebook has " +
                                std::to_string(n_layers));
}

Result<const TensorCodebook*> find_tensor(const cqkv_codebook* codebook, int layer,
                                          cqkv_kind kind) {
  CQKV_RETURN_IF_ERROR(check_layer(codebook, layer));
  const TensorCodebook* tensor =
      codebook->codebook.layers[static_cast<std::size_t>(layer)].get(kind_of(kind));
  return tensor != nullptr
             ? Result<const TensorCodebook*>(tensor)
             : invalid_argument(cqkv::side_text(kind_of(kind), layer) + " are not coded");
}

Status check_rows(const void* rows, std::size_t n_rows, std::size_t row_stride, int n_channels) {
  if (rows == nullptr && n_rows > 0) {
    return null_argument("rows");
  }
  return n_rows < 2 || row_stride >= static_cast<std::size_t>(n_channels)
             ? Status()
             : invalid_argument("row_stride: got " + std::to_string(row_stride) + ", rows have " +
                                std::to_string(n_channels) + " channels");
}

// Of encoding and of decoding.
Status check_coding(const TensorCodebook& tensor, const float* rows, std::size_t n_rows,
                    std::size_t row_stride, const std::uint16_t* codes) {
  CQKV_RETURN_IF_ERROR(check_rows(rows, n_rows, row_stride, tensor.n_channels()));
  return codes == nullptr && n_rows > 0 ? null_argument("codes") : Status();
}

Status check_cached(const cqkv_cache& cache, int layer) {
  return layer >= 0 && cache.cache.has(KvKind::kKey, layer)
             ? Status()
             : invalid_argument("layer: got " + std::to_string(layer) +
                                ", the cache has none such");
}

}  // namespace

// ---------------------------------------------------------------- errors and versions

const char* cqkv_last_error(void) {
  return last_error.c_str();
}

const char* cqkv_version(void) {
  return CQKV_VERSION;
}

const char* cqkv_isa(void) {
  static thread_local std::string name;
  guarded([]() -> Status {
    name = cqkv::active_isa();
    return {};
  });
  return name.c_str();
}

// ---------------------------------------------------------------- codebooks

cqkv_status cqkv_codebook_open(const char* path, cqkv_codebook** codebook) {
  return guarded([&]() -> Status {
    if (path == nullptr || codebook == nullptr) {
      return null_argument("path or codebook");
    }
    auto read = cqkv::read_codebook(path);
    if (!read.ok()) {
      return read.status();
    }
    *codebook = new cqkv_codebook{*std::move(read)};
    return {};
  });
}

void cqkv_codebook_free(cqkv_codebook* codebook) {
  delete codebook;
}

int cqkv_codebook_n_layers(const cqkv_codebook* codebook) {
  return codebook == nullptr ? 0 : static_cast<int>(codebook->codebook.layers.size());
}

uint64_t cqkv_codebook_identity(const cqkv_codebook* codebook) {
  return codebook == nullptr ? 0 : codebook->codebook.identity();
}

double cqkv_codebook_bits_per_channel(const cqkv_codebook* codebook) {
  return codebook == nullptr ? 0 : codebook->codebook.bits_per_channel();
}

cqkv_status cqkv_codebook_shape(const cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                cqkv_shape* shape) {
  return guarded([&]() -> Status {
    CQKV_RETURN_IF_ERROR(check_layer(codebook, layer));
    if (shape == nullptr) {
      return null_argument("shape");
    }
    *shape = {};
    const TensorCodebook* tensor =
        codebook->codebook.layers[static_cast<std::size_t>(layer)].get(kind_of(kind));
    if (tensor != nullptr) {
      *shape = {tensor->n_kv_heads(), tensor->head_dim(), tensor->n_codes(),
                tensor->spec().code_bits()};
    }
    return {};
  });
}

cqkv_status cqkv_encode(const cqkv_codebook* codebook, int layer, cqkv_kind kind, const float* rows,
                        size_t n_rows, size_t row_stride, uint16_t* codes) {
  return guarded([&]() -> Status {
    const auto tensor = find_tensor(codebook, layer, kind);
    if (!tensor.ok()) {
      return tensor.status();
    }
    CQKV_RETURN_IF_ERROR(check_coding(**tensor, rows, n_rows, row_stride, codes));
    (*tensor)->encode(rows, n_rows, row_stride, codes);
    return {};
  });
}

cqkv_status cqkv_decode(const cqkv_codebook* codebook, int layer, cqkv_kind kind,
                        const uint16_t* codes, size_t n_rows, float* rows, size_t row_stride) {
  return guarded([&]() -> Status {
    const auto tensor = find_tensor(codebook, layer, kind);
    if (!tensor.ok()) {
      return tensor.status();
    }
    CQKV_RETURN_IF_ERROR(check_coding(**tensor, rows, n_rows, row_stride, codes));
    const std::size_t n_codes = n_rows * static_cast<std::size_t>((*tensor)->n_codes());
    const int n_centroids = (*tensor)->spec().n_centroids();
    for (std::size_t i = 0; i < n_codes; i++) {
      if (codes[i] >= n_centroids) {
        return invalid_argument("codes: got " + std::to_string(codes[i]) + " at " +
                                std::to_string(i) + ", want less than " +
                                std::to_string(n_centroids));
      }
    }
    (*tensor)->decode(codes, n_rows, rows, row_stride);
    return {};
  });
}

// ---------------------------------------------------------------- learning

cqkv_status cqkv_codebook_create(int n_layers, const char* architecture, int window, int sinks,
                                 cqkv_codebook** codebook) {
  return guarded([&]() -> Status {
    if (architecture == nullptr || codebook == nullptr) {
      return null_argument("architecture or codebook");
    }
    if (n_layers < 1 || n_layers > 4096 || window < 0 || window > cqkv::kMaxWindow || sinks < 0 ||
        sinks > cqkv::kMaxWindow) {
      return invalid_argument("codebook: got " + std::to_string(n_layers) + " layers, window " +
                              std::to_string(window) + ", " + std::to_string(sinks) +
                              " sinks; want 1 to 4096, and 0 to " +
                              std::to_string(cqkv::kMaxWindow));
    }
    auto made = std::make_unique<cqkv_codebook>();
    made->codebook.origin.architecture = architecture;
    made->codebook.origin.tool_version = std::string("cqkv ") + CQKV_VERSION;
    made->codebook.window = static_cast<std::uint32_t>(window);
    made->codebook.sinks = static_cast<std::uint32_t>(sinks);
    made->codebook.layers.resize(static_cast<std::size_t>(n_layers));
    *codebook = made.release();
    return {};
  });
}

namespace {

Result<cqkv::LearnInput> learn_input(const float* rows, std::size_t n_rows, std::size_t row_stride,
                                     const cqkv_learn_options& options) {
  cqkv::LearnInput input;
  input.spec = {options.group_dim, options.code_bits};
  input.n_kv_heads = options.n_kv_heads;
  input.head_dim = options.head_dim;
  if (options.n_kv_heads < 1 || options.head_dim < 1) {
    return invalid_argument("learning: got " + std::to_string(options.n_kv_heads) +
                            " KV heads of " + std::to_string(options.head_dim) +
                            " channels, want at least 1 of 1");
  }
  CQKV_RETURN_IF_ERROR(input.spec.check(options.head_dim));
  CQKV_RETURN_IF_ERROR(check_rows(rows, n_rows, row_stride, options.n_kv_heads * options.head_dim));
  input.rows = rows;
  input.n_tokens = n_rows;
  input.row_stride = row_stride;
  if (options.weights != nullptr) {
    const auto n_groups = static_cast<std::size_t>(options.n_kv_heads) *
                          static_cast<std::size_t>(options.head_dim / options.group_dim);
    input.weights = {options.weights, n_rows * n_groups};
  }
  return input;
}

// Puts what was learned into the codebook.
void set_side(Codebook& codebook, int layer, cqkv_kind kind, const cqkv::LearnInput& input,
              std::uint64_t seed, TensorCodebook learned) {
  std::vector<TensorCodebook> side;
  side.push_back(std::move(learned));
  auto& sides = codebook.layers[static_cast<std::size_t>(layer)];
  (kind == CQKV_KEY ? sides.k : sides.v) = std::move(side);
  codebook.origin.n_tokens = static_cast<std::uint32_t>(input.n_tokens);
  codebook.origin.weighting = input.weights.empty() ? "uniform" : "fisher";
  codebook.origin.seed = seed;
}

}  // namespace

cqkv_status cqkv_codebook_learn(cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                const float* rows, size_t n_rows, size_t row_stride,
                                const cqkv_learn_options* options, double* error) {
  return guarded([&]() -> Status {
    CQKV_RETURN_IF_ERROR(check_layer(codebook, layer));
    cqkv_learn_options taken = CQKV_LEARN_OPTIONS_INIT;
    CQKV_RETURN_IF_ERROR(take_options(options, taken));
    const auto input = learn_input(rows, n_rows, row_stride, taken);
    if (!input.ok()) {
      return input.status();
    }
    cqkv::LearnOptions how;
    how.max_iterations = taken.max_iterations;
    how.seed = taken.seed;
    how.tensor = static_cast<std::uint32_t>(2 * layer + (kind == CQKV_VALUE ? 1 : 0));
    cqkv::ThreadPool threads(taken.n_threads);
    auto learned = cqkv::learn_tensor_codebook(*input, how, threads);
    if (!learned.ok()) {
      return learned.status();
    }
    if (error != nullptr) {
      *error = learned->stats.relative_error;
    }
    set_side(codebook->codebook, layer, kind, *input, taken.seed, std::move(learned->codebook));
    return {};
  });
}

cqkv_status cqkv_codebook_save(const cqkv_codebook* codebook, const char* path) {
  return guarded([&]() -> Status {
    if (codebook == nullptr || path == nullptr) {
      return null_argument("codebook or path");
    }
    return cqkv::write_codebook(codebook->codebook, path);
  });
}

// ---------------------------------------------------------------- a cache

namespace {

Status check_cache_options(const cqkv_cache_options& options) {
  constexpr std::size_t kMostCells = std::size_t{1} << 31U;
  if (options.n_cells < 1 || options.n_streams < 1 || options.n_cells > kMostCells ||
      options.n_streams > kMostCells / options.n_cells || options.n_sequences < 1) {
    return invalid_argument("cache: got " + std::to_string(options.n_streams) + " streams of " +
                            std::to_string(options.n_cells) + " cells for " +
                            std::to_string(options.n_sequences) +
                            " sequences; want at least 1 of each, and 2^31 cells at most");
  }
  if (options.window > cqkv::kMaxWindow || options.sinks > cqkv::kMaxWindow) {
    return invalid_argument("cache: got a window of " + std::to_string(options.window) + " and " +
                            std::to_string(options.sinks) + " sinks, want at most " +
                            std::to_string(cqkv::kMaxWindow));
  }
  return {};
}

CacheOptions cache_options_of(const Codebook& codebook, const cqkv_cache_options& given) {
  const auto number = [](int n) { return n < 0 ? std::nullopt : std::optional<int>(n); };
  CacheOptions options;
  options.n_streams = given.n_streams;
  options.cells_per_stream = cqkv::round_up(given.n_cells, std::size_t{cqkv::kBlockCells});
  options.window =
      cqkv::WindowOverride{number(given.window), number(given.sinks), std::nullopt}.spec_of(
          codebook);
  options.pool = cqkv::window_pool(options.window, codebook, options.cells_per_stream,
                                   static_cast<std::size_t>(given.n_sequences));
  return options;
}

// The least that a record takes, with its exact row if there is a window.
std::size_t saved_row_bytes(const TensorCodebook& tensor, bool with_exact) {
  const cqkv::CodeLayout layout(tensor.spec());
  std::size_t bytes = cqkv::record_row_bytes(layout);
  while (with_exact && !cqkv::record_holds_exact_row(layout, bytes)) {
    bytes += sizeof(std::uint16_t);
  }
  return cqkv::round_up(bytes, sizeof(std::uint16_t));
}

Status add_layer(cqkv_cache& cache, int layer, std::uint64_t identity) {
  const cqkv::LayerCodebook& codebook = cache.codebook.layers[static_cast<std::size_t>(layer)];
  if (codebook.k.empty() && codebook.v.empty()) {
    return {};
  }
  if (codebook.k.empty() || codebook.v.empty()) {
    return cqkv::unsupported("cache: layer " + std::to_string(layer) +
                             " has only one coded side, want both or none");
  }
  for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
    const TensorCodebook& tensor = *codebook.get(kind);
    const bool with_exact = cache.cache.options().window.enabled();
    const std::size_t row_bytes = saved_row_bytes(tensor, with_exact);
    CQKV_RETURN_IF_ERROR(cache.cache.add({.kind = kind,
                                          .layer = layer,
                                          .codebook = &tensor,
                                          .identity = identity,
                                          .row_bytes = row_bytes}));
    cache.sides.push_back({kind, layer, row_bytes});
    cache.memory_bytes += KvCache::tensor_size(cache.cache.options(), tensor).total();
  }
  return {};
}

Status add_layers(cqkv_cache& cache) {
  const std::uint64_t identity = cache.codebook.identity();
  for (std::size_t layer = 0; layer < cache.codebook.layers.size(); layer++) {
    CQKV_RETURN_IF_ERROR(add_layer(cache, static_cast<int>(layer), identity));
  }
  return cache.sides.empty() ? invalid_argument("cache: the codebook codes no layer") : Status();
}

}  // namespace

cqkv_status cqkv_cache_create(const cqkv_codebook* codebook, const cqkv_cache_options* options,
                              cqkv_cache** cache) {
  return guarded([&]() -> Status {
    if (codebook == nullptr || cache == nullptr) {
      return null_argument("codebook or cache");
    }
    cqkv_cache_options taken = CQKV_CACHE_OPTIONS_INIT;
    CQKV_RETURN_IF_ERROR(take_options(options, taken));
    CQKV_RETURN_IF_ERROR(check_cache_options(taken));
    CQKV_RETURN_IF_ERROR(cqkv::isa_status());
    const Codebook& book = codebook->codebook;
    auto made = std::make_unique<cqkv_cache>(book, cache_options_of(book, taken), taken.n_threads);
    CQKV_RETURN_IF_ERROR(add_layers(*made));
    *cache = made.release();
    return {};
  });
}

void cqkv_cache_free(cqkv_cache* cache) {
  delete cache;
}

size_t cqkv_cache_bytes(const cqkv_cache* cache) {
  return cache == nullptr ? 0 : cache->memory_bytes + cache->cache.table_bytes();
}

namespace {

// Tokens of one stream stand together, so that its attention is one call.
Status check_order(const cqkv_cache& cache, const std::size_t* cells, std::size_t n) {
  const std::size_t per_stream = cache.cache.options().cells_per_stream;
  for (std::size_t i = 1; i < n; i++) {
    if (cells[i] / per_stream < cells[i - 1] / per_stream) {
      return invalid_argument("cells: token " + std::to_string(i) + " goes into stream " +
                              std::to_string(cells[i] / per_stream) + " after one of stream " +
                              std::to_string(cells[i - 1] / per_stream) +
                              "; give them in the order of streams");
    }
  }
  return {};
}

cqkv::RopeParams rope_of(const cqkv_rope& given) {
  cqkv::RopeParams rope;
  rope.n_dims = given.n_dims;
  rope.mode = given.neox != 0 ? cqkv::RopeMode::kNeox : cqkv::RopeMode::kNormal;
  rope.n_ctx_orig = given.n_ctx_orig;
  rope.freq_base = given.freq_base;
  rope.freq_scale = given.freq_scale;
  rope.ext_factor = given.ext_factor;
  rope.attn_factor = given.attn_factor;
  rope.beta_fast = given.beta_fast;
  rope.beta_slow = given.beta_slow;
  if (given.freq_factors != nullptr && given.n_dims > 0) {
    rope.freq_factors.assign(given.freq_factors, given.freq_factors + given.n_dims / 2);
  }
  return rope;
}

Result<cqkv::TokenRows> token_rows(const cqkv_cache& cache, int layer, KvKind kind,
                                   const float* rows, std::size_t row_stride) {
  CQKV_RETURN_IF_ERROR(check_cached(cache, layer));
  const TensorCodebook& tensor = *cache.codebook.layers[static_cast<std::size_t>(layer)].get(kind);
  CQKV_RETURN_IF_ERROR(check_rows(rows, cache.cells.size(), row_stride, tensor.n_channels()));
  return cqkv::TokenRows{reinterpret_cast<const std::uint8_t*>(rows), row_stride * sizeof(float)};
}

Status check_step(const cqkv_cache* cache, const char* call) {
  if (cache == nullptr) {
    return null_argument("cache");
  }
  return cache->cache.in_step() ? Status()
                                : invalid_argument(std::string(call) +
                                                   " without a step; call "
                                                   "cqkv_cache_plan first");
}

}  // namespace

cqkv_status cqkv_cache_plan(cqkv_cache* cache, const int32_t* positions, const size_t* cells,
                            size_t n) {
  return guarded([&]() -> Status {
    if (cache == nullptr || (n > 0 && (positions == nullptr || cells == nullptr))) {
      return null_argument("cache, positions or cells");
    }
    CQKV_RETURN_IF_ERROR(check_order(*cache, cells, n));
    std::vector<std::int32_t> new_positions(positions, positions + n);
    std::vector<std::size_t> new_cells(cells, cells + n);
    CQKV_RETURN_IF_ERROR(cache->cache.plan({new_positions, new_cells}));
    cache->positions = std::move(new_positions);
    cache->cells = std::move(new_cells);
    return {};
  });
}

cqkv_status cqkv_cache_store_keys(cqkv_cache* cache, int layer, const float* rows,
                                  size_t row_stride, const cqkv_rope* rope) {
  return guarded([&]() -> Status {
    CQKV_RETURN_IF_ERROR(check_step(cache, "store_keys"));
    const auto taken = token_rows(*cache, layer, KvKind::kKey, rows, row_stride);
    if (!taken.ok()) {
      return taken.status();
    }
    cqkv_rope given = CQKV_ROPE_INIT;
    CQKV_RETURN_IF_ERROR(rope == nullptr ? Status() : take_options(rope, given));
    const cqkv::RopeParams params = rope_of(given);
    return cache->cache.store_keys(layer, *taken, cache->cells, rope != nullptr ? &params : nullptr,
                                   cache->threads, cache->workspace);
  });
}

cqkv_status cqkv_cache_store_values(cqkv_cache* cache, int layer, const float* rows,
                                    size_t row_stride) {
  return guarded([&]() -> Status {
    CQKV_RETURN_IF_ERROR(check_step(cache, "store_values"));
    const auto taken = token_rows(*cache, layer, KvKind::kValue, rows, row_stride);
    if (!taken.ok()) {
      return taken.status();
    }
    return cache->cache.store_values(layer, *taken, cache->cells, cache->threads, cache->workspace);
  });
}

namespace {

// Of a stream's cells, up to the last with a token.
std::size_t n_used(const cqkv_cache& cache, std::size_t first) {
  std::size_t n = cache.cache.options().cells_per_stream;
  while (n > 0 && cache.cache.cells().at(first + n - 1) == cqkv::CellTable::kEmpty) {
    n--;
  }
  return n;
}

// What the token sees of a stream of one sequence.
void causal_mask(const cqkv_cache& cache, std::size_t first, std::int32_t position,
                 std::span<std::uint16_t> mask) {
  const cqkv::CellTable& cells = cache.cache.cells();
  for (std::size_t t = 0; t < mask.size(); t++) {
    const bool invalid = cells.at(first + t) == cqkv::CellTable::kInvalid;
    const bool seen = cells.holds_token(first + t) && cells.at(first + t) <= position;
    mask[t] = seen || invalid ? 0 : cqkv::kHalfMinusInfinity;
  }
}

Status check_attention(const cqkv_cache& cache, const cqkv_attention& attention) {
  CQKV_RETURN_IF_ERROR(check_cached(cache, attention.layer));
  if (attention.queries == nullptr || attention.out == nullptr) {
    return null_argument("queries or out");
  }
  return {};
}

cqkv::AttentionCall call_of(const cqkv_cache& cache, const cqkv_attention& attention,
                            std::size_t first_token, std::size_t n_tokens) {
  const cqkv::LayerCodebook& codebook =
      cache.codebook.layers[static_cast<std::size_t>(attention.layer)];
  cqkv::AttentionCall call;
  call.n_heads = attention.n_heads;
  call.n_kv_heads = codebook.k.front().n_kv_heads();
  call.head_dim_k = codebook.k.front().head_dim();
  call.head_dim_v = codebook.v.front().head_dim();
  call.n_queries = static_cast<int>(n_tokens);
  call.scale = attention.scale;
  call.softcap = attention.softcap;
  call.query_head_bytes = static_cast<std::size_t>(call.head_dim_k) * sizeof(float);
  call.query_bytes = call.query_head_bytes * static_cast<std::size_t>(call.n_heads);
  call.queries =
      reinterpret_cast<const std::uint8_t*>(attention.queries) + first_token * call.query_bytes;
  call.out_head_bytes = static_cast<std::size_t>(call.head_dim_v) * sizeof(float);
  call.out_bytes = call.out_head_bytes * static_cast<std::size_t>(call.n_heads);
  call.out = reinterpret_cast<std::uint8_t*>(attention.out) + first_token * call.out_bytes;
  return call;
}

// Of the tokens from first_token on that go into one stream.
void add_stream(cqkv_cache& cache, const cqkv_attention& attention, std::size_t first_token,
                std::size_t n_tokens) {
  const std::size_t per_stream = cache.cache.options().cells_per_stream;
  const std::size_t first = cache.cells[first_token] / per_stream * per_stream;
  cqkv::StreamAttention stream{first, call_of(cache, attention, first_token, n_tokens)};
  stream.call.n_cells = n_used(cache, first);
  stream.call.mask_bytes = per_stream * sizeof(std::uint16_t);
  const std::uint16_t* mask = attention.mask;
  if (mask == nullptr) {
    for (std::size_t i = first_token; i < first_token + n_tokens; i++) {
      causal_mask(cache, first, cache.positions[i],
                  std::span(cache.mask).subspan(i * per_stream, stream.call.n_cells));
    }
    mask = cache.mask.data();
  }
  stream.call.mask = reinterpret_cast<const std::uint8_t*>(mask + first_token * per_stream);
  cache.streams.push_back(stream);
}

}  // namespace

cqkv_status cqkv_cache_attend(cqkv_cache* cache, const cqkv_attention* attention) {
  return guarded([&]() -> Status {
    CQKV_RETURN_IF_ERROR(check_step(cache, "attend"));
    cqkv_attention taken = CQKV_ATTENTION_INIT;
    CQKV_RETURN_IF_ERROR(take_options(attention, taken));
    CQKV_RETURN_IF_ERROR(check_attention(*cache, taken));
    const std::size_t per_stream = cache->cache.options().cells_per_stream;
    if (taken.mask == nullptr) {
      cache->mask.resize(cache->cells.size() * per_stream);
    }
    cache->streams.clear();
    for (std::size_t first = 0; first < cache->cells.size();) {
      std::size_t end = first + 1;
      while (end < cache->cells.size() &&
             cache->cells[end] / per_stream == cache->cells[first] / per_stream) {
        end++;
      }
      add_stream(*cache, taken, first, end - first);
      first = end;
    }
    return cache->cache.attend(taken.layer, cache->streams, cache->threads, cache->workspace);
  });
}

cqkv_status cqkv_cache_commit(cqkv_cache* cache) {
  return guarded([&]() -> Status {
    return cache == nullptr ? null_argument("cache") : cache->cache.commit();
  });
}

void cqkv_cache_abandon(cqkv_cache* cache) {
  if (cache != nullptr) {
    cache->cache.abandon();
  }
}

// ---------------------------------------------------------------- between steps

cqkv_status cqkv_cache_shift(cqkv_cache* cache, size_t first, const int32_t* shifts, size_t n) {
  return guarded([&]() -> Status {
    if (cache == nullptr || (shifts == nullptr && n > 0)) {
      return null_argument("cache or shifts");
    }
    return cache->cache.shift(first, {shifts, n});
  });
}

namespace {

Status copy_cells(cqkv_cache& cache, std::size_t from, std::size_t to, std::size_t n) {
  for (const cqkv_cache::Side& side : cache.sides) {
    CQKV_RETURN_IF_ERROR(cache.cache.copy(side.kind, side.layer, from, to, n));
  }
  return {};
}

Status save_cells(cqkv_cache& cache, std::size_t first, std::size_t n, std::uint8_t* bytes) {
  for (const cqkv_cache::Side& side : cache.sides) {
    const std::size_t n_bytes = n * side.row_bytes;
    CQKV_RETURN_IF_ERROR(cache.cache.read_rows(side.kind, side.layer, first, {bytes, n_bytes}));
    bytes += n_bytes;
  }
  return {};
}

// All sides, whatever is wrong with one.
Status load_cells(cqkv_cache& cache, std::size_t first, std::size_t n, const std::uint8_t* bytes) {
  Status first_error;
  for (const cqkv_cache::Side& side : cache.sides) {
    const std::size_t n_bytes = n * side.row_bytes;
    Status status = cache.cache.write_rows(side.kind, side.layer, first, {bytes, n_bytes});
    if (first_error.ok()) {
      first_error = std::move(status);
    }
    bytes += n_bytes;
  }
  return first_error;
}

}  // namespace

cqkv_status cqkv_cache_copy(cqkv_cache* cache, size_t from, size_t to, size_t n) {
  return guarded([&]() -> Status {
    return cache == nullptr ? null_argument("cache") : copy_cells(*cache, from, to, n);
  });
}

size_t cqkv_cache_saved_bytes(const cqkv_cache* cache, size_t n) {
  std::size_t row_bytes = 0;
  for (std::size_t i = 0; cache != nullptr && i < cache->sides.size(); i++) {
    row_bytes += cache->sides[i].row_bytes;
  }
  return n * row_bytes;
}

cqkv_status cqkv_cache_save(cqkv_cache* cache, size_t first, size_t n, uint8_t* bytes) {
  return guarded([&]() -> Status {
    const bool missing = cache == nullptr || (bytes == nullptr && n > 0);
    return missing ? null_argument("cache or bytes") : save_cells(*cache, first, n, bytes);
  });
}

cqkv_status cqkv_cache_load(cqkv_cache* cache, size_t first, size_t n, const uint8_t* bytes) {
  return guarded([&]() -> Status {
    const bool missing = cache == nullptr || (bytes == nullptr && n > 0);
    return missing ? null_argument("cache or bytes") : load_cells(*cache, first, n, bytes);
  });
}

void cqkv_cache_clear(cqkv_cache* cache) {
  if (cache != nullptr) {
    cache->cache.clear();
  }
}
