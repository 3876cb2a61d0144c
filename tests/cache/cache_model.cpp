// See cache_model.h.
#include "cache/cache_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "codec/exact_row.h"
#include "core/half.h"
#include "core/rng.h"
#include "rope/rope.h"
#include "support/codebooks.h"

namespace cqkv::testing {
namespace {

constexpr int kLayers = kModelLayers;
constexpr int kKvHeads = kModelKvHeads;
constexpr int kHeads = kModelHeads;
constexpr int kHeadDim = kModelHeadDim;
constexpr int kChannels = kModelChannels;
constexpr int kCells = kModelCells;
constexpr int kMaxTokens = 4;
constexpr CodecSpec kSpec{8, 4};
constexpr WindowSpec kWindow = kModelWindow;
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

RopeParams rope() {
  RopeParams params;
  params.n_dims = kHeadDim;
  params.mode = RopeMode::kNeox;
  return params;
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
  Impl(MakeDriver make_driver, CacheKind kind, CacheFaults given_faults)
      : faults(given_faults),
        n_streams(kind == CacheKind::kStreams ? 2 : 1),
        n_sequences(kind == CacheKind::kStreams ? 1 : 3),
        may_evict(kind != CacheKind::kUnified) {
    make_codebook();
    driver = make_driver(codebook, n_streams, kind == CacheKind::kUnified ? 8 : 1);
  }

  void make_codebook() {
    codebook = random_codebook(kLayers, kSpec, kSpec, kKvHeads, kHeadDim);
    // And heads without codes: one beside another, and all of a side.
    codebook.layers[1].k = {random_mixed_tensor(kSpec.code_bits, {8, 0}, kHeadDim, 21)};
    codebook.layers[1].v = {random_mixed_tensor(kSpec.code_bits, {0, 0}, kHeadDim, 22)};
    codebook.origin.model_fingerprint.clear();
    codebook.window = kWindow.window;
    codebook.sinks = kWindow.sinks;
  }

  // Calls the driver; true if it was made to fail in there.
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

  template <typename Function>
  std::string call(const Function& function) {
    Status status;
    made_to_fail = faulty([&] { status = function(); });
    return status.ok() ? "" : "the cache refuses: " + status.message();
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
    return run_step(stream, chosen);
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

  std::string run_step(int stream, const std::vector<std::size_t>& chosen) {
    ModelStep step;
    step.stream = stream;
    step.cells = chosen;
    for (const std::size_t cell : chosen) {
      step.positions.push_back(cells[cell].position);
      for (int t = 0; t < kCells; t++) {
        step.mask.push_back(sees(cell, at(stream, t)) ? 0 : kHalfMinusInfinity);
      }
    }
    step.queries.resize(chosen.size() * kHeads * kHeadDim);
    for (float& query : step.queries) {
      query = static_cast<float>(rng.normal());
    }
    bool damaged = false;
    for (const std::size_t cell : chosen) {
      for (int t = 0; t < kCells; t++) {
        damaged = damaged || (sees(cell, at(stream, t)) && cells[at(stream, t)].damaged);
      }
    }
    driver->begin(step);
    for (int layer = 0; layer < kLayers; layer++) {
      const std::string error = run_layer(layer, chosen);
      if (!error.empty()) {
        return damaged || made_to_fail ? break_off(chosen) : error;
      }
      if (!damaged) {
        const std::string wrong = compare(step, stream, chosen, layer);
        if (!wrong.empty()) {
          return wrong;
        }
      }
    }
    leave_window(stream, chosen);
    driver->end();
    return check_rows(stream);
  }

  std::string run_layer(int layer, const std::vector<std::size_t>& chosen) {
    std::vector<float> keys;
    std::vector<float> values;
    for (const std::size_t cell : chosen) {
      const Row& key = cells[cell].rows->keys[layer].given;
      const Row& value = cells[cell].rows->values[layer].given;
      keys.insert(keys.end(), key.begin(), key.end());
      values.insert(values.end(), value.begin(), value.end());
    }
    std::string error = call([&] { return driver->store_keys(layer, keys.data()); });
    if (error.empty()) {
      error = call([&] { return driver->store_values(layer, values.data()); });
    }
    return error.empty() ? call([&] { return driver->attend(layer); }) : error;
  }

  // What llama.cpp does when an evaluation fails: its tokens are taken back. In layers
  // that were not reached their rows are stale, so they must not be exact either.
  std::string break_off(const std::vector<std::size_t>& chosen) {
    driver->end();
    for (const std::size_t cell : chosen) {
      if (driver->window().row(cell) != ExactWindow::kNone) {
        return text("a token of a failed graph is exact", static_cast<int>(cell), 0);
      }
      cells[cell].free();
    }
    // Which of the others made room, or are not needed by what is still there, is not modelled.
    for (std::size_t cell = 0; cell < cells.size(); cell++) {
      cells[cell].exact = driver->window().row(cell) != ExactWindow::kNone;
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
      const bool kept = driver->window().row(at(stream, t)) != ExactWindow::kNone;
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

  std::string compare(const ModelStep& step, int stream, const std::vector<std::size_t>& chosen,
                      int layer) {
    const float* out = driver->out(layer);
    for (std::size_t i = 0; i < chosen.size(); i++) {
      const std::vector<double> want = attention(step, stream, chosen[i], i, layer);
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
  std::vector<double> attention(const ModelStep& step, int stream, std::size_t query, std::size_t i,
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
    const float* queries = step.queries.data() + i * kHeads * kHeadDim;
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
    std::vector<std::int32_t> amounts(cells.size());
    for (std::size_t i = 0; i < cells.size(); i++) {
      ModelCell& cell = cells[i];
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
    return call([&] { return driver->shift(amounts); });
  }

  std::string copy_stream(Input& input) {
    if (n_streams == 1) {
      return "";
    }
    const int from = static_cast<int>(input.below(n_streams));
    const int to = 1 - from;
    bool failed = false;
    for (int layer = 0; layer < kLayers; layer++) {
      for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
        failed = faulty([&] { driver->copy_stream(kind, layer, from, to); }) || failed;
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
      for_each_tensor([&](KvKind kind, int layer) {
        std::vector<std::uint8_t> row(driver->row_bytes());
        failed = faulty([&] { driver->read_row(kind, layer, i, row); }) || failed;
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
    for_each_tensor([&](KvKind kind, int layer) {
      for (std::size_t i = 0; i < targets.size(); i++) {
        const auto row = std::span(rows[i]).subspan(offset, driver->row_bytes());
        failed[i] = faulty([&] { driver->write_row(kind, layer, targets[i], row); }) || failed[i];
      }
      offset += driver->row_bytes();
    });
    for (std::size_t i = 0; i < targets.size(); i++) {
      cells[targets[i]] = saved_cells[i];
      cells[targets[i]].sequence = sequence;
      cells[targets[i]].damaged = i == broken || failed[i];
    }
    return check_rows(stream);
  }

  // Keys of all layers, then values, as llama.cpp saves them.
  template <typename Function>
  static void for_each_tensor(const Function& function) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      for (int layer = 0; layer < kLayers; layer++) {
        function(kind, layer);
      }
    }
  }

  std::string clear() {
    driver->clear();
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
  std::unique_ptr<CacheDriver> driver;
  bool made_to_fail = false;

  std::vector<ModelCell> cells =
      std::vector<ModelCell>(static_cast<std::size_t>(n_streams) * kCells);
  std::vector<std::vector<std::uint8_t>> saved_rows;  // [cell][tensor], flat
  std::vector<ModelCell> saved_cells;
  Rng rng{1};
  CacheModelCounts counts;
};

CacheModel::CacheModel(MakeDriver make_driver, CacheKind kind, CacheFaults faults)
    : impl_(std::make_unique<Impl>(make_driver, kind, faults)) {
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

}  // namespace cqkv::testing
