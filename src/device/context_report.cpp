// See context_report.h.
#include "device/context_report.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ggml-backend-impl.h>
#include <ggml-impl.h>

#include "core/exceptions.h"
#include "device/kv_buffer.h"
#include "device/nodes.h"
#include "device/refusal.h"

namespace cqkv::device {
namespace {

constexpr const char* kFlags = "-dev CQ0 -ngl 99 -fa on";

// Of the context whose first graph is being planned on this thread.
struct Context {
  bool reported = false;
  std::set<int> coded;    // layers with a coded side
  std::set<int> on_host;  // layers with a side that the codebook codes, away from the device
  const char* host_type = nullptr;
  std::vector<const KvBuffer*> buffers;
};

thread_local Context context;
thread_local Report newest;

std::string mib(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f MiB", static_cast<double>(bytes) / 1024.0 / 1024.0);
  return text;
}

std::string count(std::size_t n, const std::string& what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

std::string book_text(const LoadedCodebook& book) {
  return std::filesystem::path(book.path).filename().string() + " (" + book.codebook.origin.name +
         ")";
}

// The last layer, and the last of its sides, that a codebook codes.
std::pair<int, KvKind> last_side(const Codebook& codebook) {
  for (std::size_t il = codebook.layers.size(); il-- > 0;) {
    for (const KvKind kind : {KvKind::kValue, KvKind::kKey}) {
      if (codebook.layers[il].get(kind) != nullptr) {
        return {static_cast<int>(il), kind};
      }
    }
  }
  return {-1, KvKind::kValue};
}

// "codes 1.41 MiB (1.00 bits a channel; 16-bit: 22.50 MiB), ..." of all caches of the context.
std::string sizes_text() {
  std::size_t codes = 0;
  std::size_t nominal = 0;
  std::size_t tables = 0;
  std::size_t window = 0;
  std::size_t spare = 0;
  std::size_t n_cells = 0;
  WindowSpec spec;
  for (const KvBuffer* buffer : context.buffers) {
    const KvCache* cache = buffer->cache();
    if (cache == nullptr) {
      continue;
    }
    const CacheSizes sizes = cache->sizes();
    const WindowPool pool = cache->window().pool();
    codes += sizes.code_bytes;
    nominal += sizes.nominal_bytes;
    tables += sizes.table_bytes;
    window += (pool.n_rows - pool.n_spare) * sizes.row_bytes;
    spare += pool.n_spare * sizes.row_bytes;
    n_cells = std::max(n_cells, cache->options().n_cells());
    spec = cache->window().spec();
  }
  const auto bits = [&](std::size_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.2f",
                  static_cast<double>(bytes) * 16.0 / static_cast<double>(nominal));
    return std::string(text);
  };
  std::string text = count(n_cells, "cell") + ", codes " + mib(codes) + " (" + bits(codes) +
                     " bits a channel; 16-bit: " + mib(nominal) + ")";
  if (spec.enabled()) {
    text += ", window " + std::to_string(spec.window) + " + " + count(spec.sinks, "sink") + " " +
            mib(window) + ", spare rows " + mib(spare);
  } else {
    text += ", no exact window";
  }
  return text + ", tables " + mib(tables) + ": " + bits(codes + window + spare + tables) +
         " bits a channel in all";
}

void note(Coded coded, const std::string& line) {
  context.reported = true;
  newest = {coded, line};
}

// A warning, though all is well: hosts hide what is less.
void say(Coded coded, const std::string& line) {
  note(coded, line);
  GGML_LOG_WARN("cqkv: %s\n", line.c_str());
}

// An error, though all goes on: llama-cli hides what is less.
void complain(Coded coded, const std::string& line) {
  note(coded, line);
  GGML_LOG_ERROR("cqkv: %s\n", line.c_str());
}

void report(const LoadedCodebook& book) {
  const std::size_t n_layers = context.coded.size() + context.on_host.size();
  if (context.coded.empty()) {
    const std::string type = context.host_type;
    complain(Coded::kNone, "the cache is NOT coded, although there is the codebook " +
                               book_text(book) + ": all " + count(n_layers, "layer") + " keep " +
                               type + " rows on the CPU; llama.cpp needs " + kFlags +
                               ", and without --no-kv-offload");
  } else if (!context.on_host.empty()) {
    complain(Coded::kSome, "only " + std::to_string(context.coded.size()) + " of " +
                               count(n_layers, "layer") + " are coded with " + book_text(book) +
                               ", the others keep 16-bit rows on the CPU: llama.cpp "
                               "needs -ngl 99; coded are " +
                               sizes_text());
  } else {
    say(Coded::kAll, "all " + count(n_layers, "layer") + " are coded with " + book_text(book) +
                         ": " + sizes_text());
  }
}

// The cache of a host's layer in a dry run has a buffer without memory.
bool has_memory(const ggml_tensor* cache) {
  return cache->buffer != nullptr && cache->buffer->size > 0;
}

void note_side(const ggml_tensor* cache, int layer) {
  if (is_ours(cache) && buffer_of(cache).coded(cache) != nullptr) {
    context.coded.insert(layer);
    const KvBuffer* buffer = find_buffer(cache);
    if (std::find(context.buffers.begin(), context.buffers.end(), buffer) ==
        context.buffers.end()) {
      context.buffers.push_back(buffer);
    }
  } else {
    context.on_host.insert(layer);
    context.host_type = ggml_type_name(cache->type);
  }
}

void watch_store(const ggml_tensor* cache) {
  const auto name = parse_cache_name(cache->name);
  const auto library = current_library();
  if (!name || !library.ok()) {
    return;
  }
  if (!has_memory(cache)) {
    context.reported = true;  // a dry run
    return;
  }
  if ((*library)->empty()) {
    say(Coded::kNone, "no codebook is set (CQKV_CODEBOOK): the cache is kept as 16-bit rows");
    return;
  }
  const LoadedCodebook* book = (*library)->match(*name, cache->ne[0]);
  if (book == nullptr) {
    complain(Coded::kNone,
             "no codebook fits this model's cache: layer " + std::to_string(name->layer) + " has " +
                 count(static_cast<std::size_t>(cache->ne[0]),
                       std::string(kv_kind_name(name->kind)) + " channel") +
                 ", want those of " + (*library)->names() + "; it is kept as 16-bit rows");
    return;
  }
  if (book->codebook.layers[static_cast<std::size_t>(name->layer)].get(name->kind) != nullptr) {
    note_side(cache, name->layer);
  }
  if (last_side(book->codebook) == std::pair(name->layer, name->kind)) {
    report(*book);
  }
}

}  // namespace

void begin_context() {
  context = Context();
  newest = Report();
}

Report take_report() {
  return std::exchange(newest, Report());
}

void watch_planned_node(const ggml_tensor* node) {
  if (is_refused()) {
    context.reported = true;  // the reason was
  }
  if (!context.reported && node->op == GGML_OP_SET_ROWS) {
    // Nothing to do without memory for a line.
    static_cast<void>(without_exceptions("reporting", [&] { watch_store(root_of(node)); }));
  }
}

void watch_plain_node(const ggml_tensor* node) {
  static std::atomic<bool> said{false};
  if (node->op != GGML_OP_SET_ROWS || !is_our_cache(node) || said) {
    return;
  }
  static_cast<void>(without_exceptions("reporting", [&] {
    const ggml_tensor* cache = root_of(node);
    if (buffer_of(node).would_code(cache) && !said.exchange(true)) {
      report_error(std::string(cache->name) +
                   " was written here without having been placed here, as llama.cpp's RPC server "
                   "does: it is kept as 16-bit rows, NOT coded; use the device in the program that "
                   "holds the cache");
    }
  }));
}

}  // namespace cqkv::device
