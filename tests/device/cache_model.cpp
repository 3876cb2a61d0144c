// See cache_model.h.
#include "device/cache_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <unistd.h>

#include "cqkv/codebook_file.h"

#include "core/half.h"
#include "core/rng.h"
#include "device/graph_ops.h"
#include "device/kv_buffer.h"
#include "support/codebooks.h"

namespace cqkv::device {
namespace {

constexpr int kLayers = 2;
constexpr int kKvHeads = 2;
constexpr int kHeads = 4;
constexpr int kHeadDim = 32;
constexpr int kChannels = kKvHeads * kHeadDim;
constexpr int kCells = 128;  // of one stream: two blocks
constexpr int kMaxTokens = 4;
constexpr CodecSpec kSpec{8, 4};
constexpr WindowSpec kWindow{6, 2};
// What f32 loses against the model's doubles is some 1e-4 where scores are large; a wrong
// row, position or mask gives 1e-2 and more.
constexpr double kTolerance = 1e-3;

using Row = std::array<float, kChannels>;

// A row as it arrives (keys after RoPE), and what queries may see of it (before RoPE).
struct ModelRow {
  Row given;
  Row coded;
  Row exact;
};

// Of all layers.
struct ModelRows {
  std::array<ModelRow, kLayers> keys;
  std::array<ModelRow, kLayers> values;
};

struct ModelCell {
  int sequence = -1;  // -1: free
  std::int32_t position = 0;
  bool sink = false;
  bool exact = false;    // has an exact row,
  bool needed = false;   // which its sequence must keep
  bool damaged = false;  // restored from a damaged row: anything may be in it
  // Not in here: most operations go over all cells for the numbers above.
  std::shared_ptr<const ModelRows> rows;

  void free() { sequence = -1; }
};

// Reads numbers off the input; zeros at its end.
class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }

  std::uint32_t below(std::uint32_t bound) {
    if (bytes_.empty()) {
      return 0;
    }
    const std::uint32_t value = bytes_.front() % bound;
    bytes_ = bytes_.subspan(1);
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

// One thread, and the promise of ParallelFor that tasks do not throw is kept or fatal.
class StrictParallelFor final : public ParallelFor {
 public:
  int n_threads() const override { return 1; }

  void run(int n_tasks, const Task& task) override {
    const auto run_one = [&](int i) noexcept { task(i, 0); };
    for (int i = 0; i < n_tasks; i++) {
      run_one(i);
    }
  }
};

// Tensors of one evaluation of n tokens on a stream, made once and filled for each.
struct Graph {
  ggml_context_ptr context;
  ggml_backend_buffer_ptr buffer;
  ggml_tensor* positions = nullptr;
  ggml_tensor* cells = nullptr;
  ggml_tensor* mask = nullptr;
  ggml_tensor* queries = nullptr;  // [head_dim, heads, n], before the permutation
  std::array<ggml_tensor*, kLayers> rotated{};
  std::array<ggml_tensor*, kLayers> values{};
  std::array<ggml_tensor*, kLayers> store_keys{};
  std::array<ggml_tensor*, kLayers> store_values{};
  std::array<ggml_tensor*, kLayers> attend{};
};

RopeParams rope() {
  RopeParams params;
  params.n_dims = kHeadDim;
  params.mode = RopeMode::kNeox;
  return params;
}

ggml_tensor* rope_node(ggml_context* context, ggml_tensor* x, ggml_tensor* positions) {
  const RopeParams p = rope();
  return ggml_rope_ext(context, x, positions, nullptr, p.n_dims, GGML_ROPE_TYPE_NEOX, 0,
                       p.freq_base, p.freq_scale, p.ext_factor, p.attn_factor, p.beta_fast,
                       p.beta_slow);
}

using Angles = std::array<std::pair<double, double>, kHeadDim / 2>;

// Cosine and sine of each pair, remembered.
const Angles& angles_of(std::int32_t position) {
  static std::map<std::int32_t, Angles> known;
  const auto [entry, fresh] = known.try_emplace(position);
  if (fresh) {
    const RopeFrequencies frequencies = RopeFrequencies::of(rope());
    for (std::size_t i = 0; i < entry->second.size(); i++) {
      const double angle = frequencies.frequency[i] * position;
      entry->second[i] = {std::cos(angle), std::sin(angle)};
    }
  }
  return entry->second;
}

// As the device does it, so that roundings cannot make other codes of the row.
void rotate_back(Row& row, std::int32_t position) {
  std::array<float, kHeadDim / 2> cosines;
  std::array<float, kHeadDim / 2> sines;
  rope_row_ggml(rope(), position, cosines.data(), sines.data());
  rope_inverse(rope(), cosines.data(), sines.data(), kKvHeads, kHeadDim, row.data());
}

std::string text(const char* what, int a, int b, double got = 0, double want = 0) {
  char out[160];
  std::snprintf(out, sizeof(out), "%s (%d, %d): got %g, want %g", what, a, b, got, want);
  return out;
}

}  // namespace

struct CacheModel::Impl {
  Impl(CacheKind kind, CacheFaults given_faults)
      : faults(given_faults),
        n_streams(kind == CacheKind::kStreams ? 2 : 1),
        n_sequences(kind == CacheKind::kStreams ? 1 : 3),
        may_evict(kind != CacheKind::kUnified) {
    make_library(kind == CacheKind::kUnified ? 8 : 1);
    make_cache();
    for (int stream = 0; stream < n_streams; stream++) {
      for (int n = 1; n <= kMaxTokens; n++) {
        graphs[stream][n] = make_graph(stream, n);
      }
    }
    make_shift();
  }

  // ---- The device's side ----

  void make_library(int pool_sequences) {
    codebook = testing::random_codebook(kLayers, kSpec, kSpec, kKvHeads, kHeadDim);
    // And heads without codes: one beside another, and all of a side.
    codebook.layers[1].k = {testing::random_mixed_tensor(kSpec.code_bits, {8, 0}, kHeadDim, 21)};
    codebook.layers[1].v = {testing::random_mixed_tensor(kSpec.code_bits, {0, 0}, kHeadDim, 22)};
    codebook.origin.model_fingerprint.clear();
    codebook.window = kWindow.window;
    codebook.sinks = kWindow.sinks;
    std::string path = "/tmp/cqkv_cache_model_XXXXXX";
    const int file = mkstemp(path.data());
    close(file);
    if (!write_codebook(codebook, path).ok()) {
      std::abort();
    }
    set_window_choice({.window = {}, .n_sequences = pool_sequences});
    set_byte_tables(false);  // whose roundings would hide a wrong row
    set_current_library(*CodebookLibrary::load(path.c_str()));
    unlink(path.c_str());
  }

  void make_cache() {
    context.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    for (int layer = 0; layer < kLayers; layer++) {
      for (const char kind : {'k', 'v'}) {
        ggml_tensor* tensor =
            ggml_new_tensor_3d(context.get(), GGML_TYPE_F16, kChannels, kCells, n_streams);
        ggml_format_name(tensor, "cache_%c_l%d", kind, layer);
        (kind == 'k' ? k : v)[layer] = tensor;
      }
    }
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), kv_buffer_type(nullptr)));
    kv = &buffer_of(k[0]);
  }

  Graph make_graph(int stream, int n) const {
    Graph graph;
    graph.context.reset(ggml_init({ggml_tensor_overhead() * 256, nullptr, true}));
    ggml_context* c = graph.context.get();
    graph.positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, n);
    graph.cells = ggml_new_tensor_1d(c, GGML_TYPE_I64, n);
    graph.mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, kCells, n);
    graph.queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, kHeadDim, kHeads, n);
    for (int layer = 0; layer < kLayers; layer++) {
      const auto store = [&](ggml_tensor* cache, ggml_tensor* rows) {
        ggml_tensor* all = ggml_reshape_2d(c, cache, kChannels, kCells * n_streams);
        return ggml_set_rows(c, all, ggml_view_2d(c, rows, kChannels, n, rows->nb[2], 0),
                             graph.cells);
      };
      const auto view = [&](ggml_tensor* cache) {
        const std::size_t row = cache->nb[1];
        return ggml_permute(c,
                            ggml_view_4d(c, cache, kHeadDim, kKvHeads, kCells, 1, row / kKvHeads,
                                         row, row * kCells, row * kCells * stream),
                            0, 2, 1, 3);
      };
      ggml_tensor* plain = ggml_new_tensor_3d(c, GGML_TYPE_F32, kHeadDim, kKvHeads, n);
      graph.rotated[layer] = rope_node(c, plain, graph.positions);
      graph.values[layer] = ggml_new_tensor_3d(c, GGML_TYPE_F32, kHeadDim, kKvHeads, n);
      graph.store_keys[layer] = store(k[layer], graph.rotated[layer]);
      graph.store_values[layer] = store(v[layer], graph.values[layer]);
      graph.attend[layer] = ggml_flash_attn_ext(
          c, ggml_permute(c, graph.queries, 0, 2, 1, 3), view(k[layer]), view(v[layer]), graph.mask,
          1.0F / std::sqrt(static_cast<float>(kHeadDim)), 0.0F, 0.0F);
    }
    graph.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type()));
    return graph;
  }

  void make_shift() {
    shift_context.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    ggml_context* c = shift_context.get();
    shift_amount = ggml_new_tensor_1d(c, GGML_TYPE_I32, kCells * n_streams);
    for (int layer = 0; layer < kLayers; layer++) {
      const std::size_t row = k[layer]->nb[1];
      ggml_tensor* view =
          ggml_view_3d(c, k[layer], kHeadDim, kKvHeads, kCells * n_streams, row / kKvHeads, row, 0);
      shift_nodes[layer] =
          ggml_rope_ext_inplace(c, view, shift_amount, nullptr, kHeadDim, GGML_ROPE_TYPE_NEOX, 0,
                                10000.0F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
    }
    shift_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type()));
  }

  // Calls the device; true if it was made to fail in there.
  template <typename Function>
  bool faulty(const Function& function) const {
    if (faults.begin == nullptr) {
      function();
      return false;
    }
    faults.begin();
    function();
    return faults.end();
  }

  std::string compute(ggml_tensor* node) {
    Status status;
    made_to_fail = faulty([&] { status = run_coded(node, parallel, scratch); });
    return status.ok() ? "" : "the device refuses: " + status.message();
  }

  // ---- Operations ----

  std::string step(Input& input) {
    counts.n_operations++;
    switch (input.below(16)) {
      case 0:
        return remove(input);
      case 1:
        return take_back(input);
      case 2:
        return shift(input);
      case 3:
        return copy_stream(input);
      case 4:
        return save(input);
      case 5:
        return restore(input, false);
      case 6:
        return restore(input, true);
      case 7:
        return input.below(8) == 0 ? clear() : "";
      default:
        return evaluate(input);
    }
  }

  // Up to kMaxTokens tokens of a stream's sequences, each the next of its own.
  std::string evaluate(Input& input) {
    const int stream = static_cast<int>(input.below(n_streams));
    const int n = 1 + static_cast<int>(input.below(kMaxTokens));
    const int same = static_cast<int>(input.below(n_sequences + 1));
    std::vector<std::size_t> chosen;
    std::vector<int> sequences;
    for (int i = 0; i < n; i++) {
      const int own = same < n_sequences ? same : static_cast<int>(input.below(n_sequences));
      sequences.push_back(stream * n_sequences + own);
      chosen.push_back(free_cell(stream, static_cast<int>(input.below(kCells))));
      store(cells[chosen.back()], sequences.back());
    }
    // Making room may have removed tokens of this very batch.
    for (std::size_t i = 0; i < chosen.size(); i++) {
      if (cells[chosen[i]].sequence != sequences[i]) {
        for (const std::size_t cell : chosen) {
          cells[cell].free();
        }
        return "";
      }
    }
    return run_graph(graphs[stream][n], stream, chosen);
  }

  // From cell t of the stream on; if it is full, the sequence there has to go.
  std::size_t free_cell(int stream, int t) {
    for (int i = 0; i < kCells; i++) {
      if (cells[at(stream, (t + i) % kCells)].sequence < 0) {
        return at(stream, (t + i) % kCells);
      }
    }
    remove_sequence(cells[at(stream, t)].sequence);
    return at(stream, t);
  }

  void store(ModelCell& cell, int sequence) {
    const std::int32_t position = next_position(sequence);
    cell.sequence = sequence;
    cell.position = position;
    cell.damaged = false;
    cell.sink = position < kWindow.sinks;
    cell.exact = true;  // while the graph runs
    const auto rows = std::make_shared<ModelRows>();
    for (int layer = 0; layer < kLayers; layer++) {
      rows->keys[layer] = random_row(*codebook.layers[layer].get(KvKind::kKey), position);
      rows->values[layer] = random_row(*codebook.layers[layer].get(KvKind::kValue), 0);
    }
    cell.rows = rows;
  }

  ModelRow random_row(const TensorCodebook& book, std::int32_t position) {
    ModelRow row;
    for (float& value : row.given) {
      value = static_cast<float>(rng.normal());
    }
    Row stored = row.given;
    rotate_back(stored, position);
    std::array<std::uint16_t, kChannels> codes;
    book.encode(stored.data(), 1, kChannels, codes.data());
    book.decode(codes.data(), 1, row.coded.data(), kChannels);
    const ExactRowLayout layout{kChannels};
    std::vector<std::uint8_t> bytes(layout.row_bytes());
    write_exact_row(layout, stored.data(), row.coded.data(), bytes.data());
    row.exact = row.coded;
    add_exact_row(layout, bytes.data(), 0, kChannels, row.exact.data());
    return row;
  }

  std::int32_t next_position(int sequence) const {
    std::int32_t next = 0;
    for (const ModelCell& cell : cells) {
      next = cell.sequence == sequence ? std::max(next, cell.position + 1) : next;
    }
    return next;
  }

  std::string run_graph(Graph& graph, int stream, const std::vector<std::size_t>& chosen) {
    auto* positions = static_cast<std::int32_t*>(graph.positions->data);
    auto* indices = static_cast<std::int64_t*>(graph.cells->data);
    auto* mask = static_cast<std::uint16_t*>(graph.mask->data);
    auto* queries = static_cast<float*>(graph.queries->data);
    for (std::size_t i = 0; i < chosen.size(); i++) {
      positions[i] = cells[chosen[i]].position;
      indices[i] = static_cast<std::int64_t>(chosen[i]);
      for (int t = 0; t < kCells; t++) {
        mask[i * kCells + t] = sees(chosen[i], at(stream, t)) ? 0 : 0xFC00;
      }
    }
    for (std::size_t i = 0; i < chosen.size() * kHeads * kHeadDim; i++) {
      queries[i] = static_cast<float>(rng.normal());
    }
    bool damaged = false;
    for (const std::size_t cell : chosen) {
      for (int t = 0; t < kCells; t++) {
        damaged = damaged || (sees(cell, at(stream, t)) && cells[at(stream, t)].damaged);
      }
    }
    for (int layer = 0; layer < kLayers; layer++) {
      for (std::size_t i = 0; i < chosen.size(); i++) {
        std::memcpy(static_cast<float*>(graph.rotated[layer]->data) + i * kChannels,
                    cells[chosen[i]].rows->keys[layer].given.data(), sizeof(Row));
        std::memcpy(static_cast<float*>(graph.values[layer]->data) + i * kChannels,
                    cells[chosen[i]].rows->values[layer].given.data(), sizeof(Row));
      }
      for (ggml_tensor* node :
           {graph.store_keys[layer], graph.store_values[layer], graph.attend[layer]}) {
        const std::string error = compute(node);
        if (!error.empty()) {
          return damaged || made_to_fail ? break_off(chosen) : error;
        }
      }
      if (!damaged) {
        const std::string wrong = compare(graph, stream, chosen, layer);
        if (!wrong.empty()) {
          return wrong;
        }
      }
    }
    leave_window(stream, chosen);
    kv->settle();
    return check_rows(stream);
  }

  // What llama.cpp does when an evaluation fails: its tokens are taken back. In layers
  // that were not reached their rows are stale, so they must not be exact either.
  std::string break_off(const std::vector<std::size_t>& chosen) {
    kv->settle();
    for (const std::size_t cell : chosen) {
      if (kv->cache()->window().row(cell) != ExactWindow::kNone) {
        return text("a token of a failed graph is exact", static_cast<int>(cell), 0);
      }
      cells[cell].free();
    }
    // Which of the others made room, or are not needed by what is still there, is not modelled.
    for (std::size_t cell = 0; cell < cells.size(); cell++) {
      cells[cell].exact = kv->cache()->window().row(cell) != ExactWindow::kNone;
      cells[cell].needed = false;
    }
    return "";
  }

  static std::size_t at(int stream, int t) {
    return static_cast<std::size_t>(stream) * kCells + static_cast<std::size_t>(t);
  }

  bool sees(std::size_t query, std::size_t cell) const {
    return cells[cell].sequence == cells[query].sequence &&
           cells[cell].position <= cells[query].position;
  }

  bool seen_exactly(const ModelCell& query, const ModelCell& cell) const {
    return cell.exact && (cell.sink || query.position - cell.position < kWindow.window);
  }

  void leave_window(int stream, const std::vector<std::size_t>& chosen) {
    for (int t = 0; t < kCells; t++) {
      ModelCell& cell = cells[at(stream, t)];
      std::int32_t newest = -1;
      for (const std::size_t query : chosen) {
        newest = sees(query, at(stream, t)) ? std::max(newest, cells[query].position) : newest;
      }
      if (newest >= 0) {
        cell.needed = cell.sink || newest - cell.position < kWindow.kept();
      }
    }
  }

  // The device must keep the rows that are needed, unless it evicts, and may keep others; a row
  // that is gone does not come back.
  std::string check_rows(int stream) {
    for (int t = 0; t < kCells; t++) {
      ModelCell& cell = cells[at(stream, t)];
      const bool kept = kv->cache()->window().row(at(stream, t)) != ExactWindow::kNone;
      if (cell.sequence < 0 || cell.damaged) {
        continue;
      }
      const bool may_go = may_evict || !cell.needed;
      if (kept != cell.exact && !(may_go && cell.exact)) {
        return text("exact row", stream, t, kept ? 1 : 0, cell.exact ? 1 : 0);
      }
      cell.exact = kept;
    }
    return "";
  }

  std::string compare(const Graph& graph, int stream, const std::vector<std::size_t>& chosen,
                      int layer) {
    const auto* out = static_cast<const float*>(graph.attend[layer]->data);
    for (std::size_t i = 0; i < chosen.size(); i++) {
      const std::vector<double> want = attention(graph, stream, chosen[i], i, layer);
      for (std::size_t d = 0; d < want.size(); d++) {
        const double got = out[i * want.size() + d];
        if (!(std::abs(got - want[d]) < kTolerance)) {
          return text("attention of (layer, channel)", layer, static_cast<int>(d), got, want[d]);
        }
      }
      counts.n_attended++;
    }
    return "";
  }

  // [heads, head_dim] of query i, at cell `query`.
  std::vector<double> attention(const Graph& graph, int stream, std::size_t query, std::size_t i,
                                int layer) {
    struct Seen {
      std::array<double, kChannels> key;
      const Row* value;
    };

    std::vector<Seen> seen;
    for (int t = 0; t < kCells; t++) {
      const ModelCell& cell = cells[at(stream, t)];
      if (sees(query, at(stream, t))) {
        const bool exact = seen_exactly(cells[query], cell);
        (exact ? counts.n_exact : counts.n_coded)++;
        const ModelRow& key = cell.rows->keys[layer];
        const ModelRow& value = cell.rows->values[layer];
        seen.push_back({rotated(exact ? key.exact : key.coded, cell.position),
                        exact ? &value.exact : &value.coded});
      }
    }
    std::vector<double> result(kHeads * kHeadDim);
    const float* queries = static_cast<const float*>(graph.queries->data) + i * kHeads * kHeadDim;
    for (int head = 0; head < kHeads; head++) {
      const int first = head / (kHeads / kKvHeads) * kHeadDim;
      double sum = 0;
      for (const Seen& cell : seen) {
        double score = 0;
        for (int d = 0; d < kHeadDim; d++) {
          score += queries[head * kHeadDim + d] * cell.key[first + d];
        }
        const double p = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)));
        sum += p;
        for (int d = 0; d < kHeadDim; d++) {
          result[head * kHeadDim + d] += p * (*cell.value)[first + d];
        }
      }
      for (int d = 0; d < kHeadDim; d++) {
        result[head * kHeadDim + d] /= sum;
      }
    }
    return result;
  }

  static std::array<double, kChannels> rotated(const Row& row, std::int32_t position) {
    const auto& angles = angles_of(position);
    std::array<double, kChannels> result;
    for (int i = 0; i < kHeadDim / 2; i++) {
      const auto [cosine, sine] = angles[static_cast<std::size_t>(i)];
      for (int head = 0; head < kKvHeads; head++) {
        const int at_x = head * kHeadDim + i;
        const int at_y = at_x + kHeadDim / 2;
        result[at_x] = row[at_x] * cosine - row[at_y] * sine;
        result[at_y] = row[at_x] * sine + row[at_y] * cosine;
      }
    }
    return result;
  }

  void remove_sequence(int sequence) {
    for (ModelCell& cell : cells) {
      if (cell.sequence == sequence) {
        cell.free();
      }
    }
  }

  std::string remove(Input& input) {
    remove_sequence(static_cast<int>(input.below(n_streams * n_sequences)));
    return "";
  }

  // The last tokens of a sequence go.
  std::string take_back(Input& input) {
    const int sequence = static_cast<int>(input.below(n_streams * n_sequences));
    const std::int32_t from = next_position(sequence) - static_cast<int>(input.below(24));
    for (ModelCell& cell : cells) {
      if (cell.sequence == sequence && cell.position >= from) {
        cell.free();
      }
    }
    return "";
  }

  // A context shift: part of a sequence goes, what is behind it moves down.
  std::string shift(Input& input) {
    const int sequence = static_cast<int>(input.below(n_streams * n_sequences));
    const auto from = static_cast<std::int32_t>(input.below(16));
    const auto n = static_cast<std::int32_t>(1 + input.below(16));
    auto* amounts = static_cast<std::int32_t*>(shift_amount->data);
    for (std::size_t i = 0; i < cells.size(); i++) {
      ModelCell& cell = cells[i];
      amounts[i] = 0;
      if (cell.sequence != sequence || cell.position < from) {
        continue;
      }
      if (cell.position < from + n) {
        cell.free();
      } else {
        cell.position -= n;
        amounts[i] = -n;
      }
    }
    for (ggml_tensor* node : shift_nodes) {
      const std::string error = compute(node);
      if (!error.empty()) {
        return error;
      }
    }
    return "";
  }

  std::string copy_stream(Input& input) {
    if (n_streams == 1) {
      return "";
    }
    const int from = static_cast<int>(input.below(n_streams));
    const int to = 1 - from;
    bool failed = false;
    const ggml_context_ptr views(ggml_init({ggml_tensor_overhead() * 32, nullptr, true}));
    for (int layer = 0; layer < kLayers; layer++) {
      for (ggml_tensor* tensor : {k[layer], v[layer]}) {
        const auto stream = [&](int s) {
          ggml_tensor* view = ggml_view_2d(views.get(), tensor, kChannels, kCells, tensor->nb[1],
                                           tensor->nb[2] * s);
          ggml_backend_view_init(view);
          return view;
        };
        ggml_tensor* source = stream(from);
        ggml_tensor* target = stream(to);
        failed = faulty([&] { ggml_backend_tensor_copy(source, target); }) || failed;
      }
    }
    for (int t = 0; t < kCells; t++) {
      ModelCell& copy = cells[at(to, t)];
      copy = cells[at(from, t)];
      copy.sequence += copy.sequence < 0 ? 0 : (to - from) * n_sequences;
      copy.damaged = copy.damaged || failed;
    }
    return check_rows(to);
  }

  // All cells of a sequence, in order of position, as llama.cpp saves them.
  std::string save(Input& input) {
    const int sequence = static_cast<int>(input.below(n_streams * n_sequences));
    bool failed = false;
    saved_rows.clear();
    saved_cells.clear();
    for (std::size_t i = 0; i < cells.size(); i++) {
      if (cells[i].sequence != sequence) {
        continue;
      }
      if (cells[i].damaged) {
        saved_cells.clear();
        return "";
      }
      saved_cells.push_back(cells[i]);
      std::vector<std::uint8_t> rows;
      for_each_tensor([&](ggml_tensor* tensor) {
        std::vector<std::uint8_t> row(tensor->nb[1]);
        failed = faulty([&] {
                   ggml_backend_tensor_get(tensor, row.data(), i * row.size(), row.size());
                 }) ||
                 failed;
        rows.insert(rows.end(), row.begin(), row.end());
      });
      saved_rows.push_back(std::move(rows));
    }
    if (failed) {
      saved_cells.clear();
    }
    return "";
  }

  std::string restore(Input& input, bool damage) {
    const int sequence = static_cast<int>(input.below(n_streams * n_sequences));
    const int stream = sequence / n_sequences;
    remove_sequence(sequence);
    std::vector<std::size_t> targets;
    for (int t = 0; t < kCells && targets.size() < saved_cells.size(); t++) {
      if (cells[at(stream, t)].sequence < 0) {
        targets.push_back(at(stream, t));
      }
    }
    if (saved_cells.empty() || targets.size() < saved_cells.size()) {
      return "";
    }
    std::vector<std::vector<std::uint8_t>> rows = saved_rows;
    std::size_t broken = saved_cells.size();
    if (damage) {
      broken = input.below(static_cast<std::uint32_t>(saved_cells.size()));
      auto& row = rows[broken];
      row[(input.below(256) * 256 + input.below(256)) % row.size()] ^=
          static_cast<std::uint8_t>(1 + input.below(255));
    }
    std::size_t offset = 0;
    std::vector<bool> failed(targets.size());
    for_each_tensor([&](ggml_tensor* tensor) {
      for (std::size_t i = 0; i < targets.size(); i++) {
        const auto set = [&] {
          ggml_backend_tensor_set(tensor, rows[i].data() + offset, targets[i] * tensor->nb[1],
                                  tensor->nb[1]);
        };
        failed[i] = faulty(set) || failed[i];
      }
      offset += tensor->nb[1];
    });
    for (std::size_t i = 0; i < targets.size(); i++) {
      cells[targets[i]] = saved_cells[i];
      cells[targets[i]].sequence = sequence;
      cells[targets[i]].damaged = i == broken || failed[i];
    }
    return check_rows(stream);
  }

  template <typename Function>
  void for_each_tensor(const Function& function) {
    for (ggml_tensor* tensor : k) {
      function(tensor);
    }
    for (ggml_tensor* tensor : v) {
      function(tensor);
    }
  }

  std::string clear() {
    ggml_backend_buffer_clear(buffer.get(), 0);
    for (ModelCell& cell : cells) {
      cell.free();
    }
    return "";
  }

  CacheFaults faults;
  int n_streams;
  int n_sequences;  // of one stream
  bool may_evict;
  Codebook codebook;
  ggml_context_ptr context;
  ggml_backend_buffer_ptr buffer;
  KvBuffer* kv = nullptr;
  std::array<ggml_tensor*, kLayers> k{};
  std::array<ggml_tensor*, kLayers> v{};
  std::map<int, std::map<int, Graph>> graphs;
  ggml_context_ptr shift_context;
  ggml_backend_buffer_ptr shift_buffer;
  ggml_tensor* shift_amount = nullptr;
  std::array<ggml_tensor*, kLayers> shift_nodes{};
  StrictParallelFor parallel;
  GraphScratch scratch;
  bool made_to_fail = false;

  std::vector<ModelCell> cells =
      std::vector<ModelCell>(static_cast<std::size_t>(n_streams) * kCells);
  std::vector<std::vector<std::uint8_t>> saved_rows;  // [cell][tensor], flat
  std::vector<ModelCell> saved_cells;
  Rng rng{1};
  CacheModelCounts counts;
};

CacheModel::CacheModel(CacheKind kind, CacheFaults faults)
    : impl_(std::make_unique<Impl>(kind, faults)) {
}

CacheModel::~CacheModel() = default;

const CacheModelCounts& CacheModel::counts() const {
  return impl_->counts;
}

std::string CacheModel::run(std::span<const std::uint8_t> bytes) {
  impl_->clear();
  impl_->saved_cells.clear();
  impl_->rng = Rng(1);
  Input input(bytes);
  while (!input.empty()) {
    std::string wrong = impl_->step(input);
    if (!wrong.empty()) {
      return "operation " + std::to_string(impl_->counts.n_operations) + ": " + wrong;
    }
  }
  return "";
}

}  // namespace cqkv::device
