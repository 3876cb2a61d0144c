// See exact_window.h.
#include "cache/exact_window.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "core/half.h"

namespace cqkv {
namespace {

constexpr std::int64_t kUnseen = std::numeric_limits<std::int64_t>::min();

}  // namespace

std::size_t window_rows(const WindowSpec& spec, std::size_t n_cells, std::size_t n_sequences) {
  return std::min(n_cells, spec.rows_per_sequence() * n_sequences);
}

bool MaskView::sees(std::size_t query, std::size_t cell) const {
  if (data == nullptr) {
    return true;
  }
  std::uint16_t value = 0;
  std::memcpy(&value, data + query * row_bytes + cell * sizeof(value), sizeof(value));
  return value != kHalfMinusInfinity;
}

// Something that has a row in this graph: a slot of the pool or a token of the batch.
struct ExactWindow::Candidate {
  std::size_t cell = 0;  // from the mask's first on
  bool is_token = false;
  std::size_t index = 0;  // slot or token
  bool sink = false;
  std::int64_t position = 0;
  std::int64_t newest = kUnseen;  // position of the newest query that sees it
  std::uint64_t last_seen = 0;

  // Larger: kept rather.
  auto rank() const { return std::tuple(last_seen, sink, position); }
};

void ExactWindow::configure(WindowSpec spec, std::size_t n_streams, std::size_t cells_per_stream,
                            std::size_t rows_per_stream) {
  *this = ExactWindow();
  spec_ = spec;
  if (enabled()) {
    cells_per_stream_ = cells_per_stream;
    rows_per_stream_ = rows_per_stream;
    row_of_cell_.assign(n_streams * cells_per_stream, kNone);
    slots_.resize(n_streams * rows_per_stream);
    sink_of_row_.assign(slots_.size(), 0);
  }
}

void ExactWindow::clear() {
  std::fill(row_of_cell_.begin(), row_of_cell_.end(), kNone);
  std::fill(slots_.begin(), slots_.end(), Slot());
  tokens_.clear();
  moves_.clear();
  given_up_.clear();
  pending_ = false;
  planned_ = false;
}

void ExactWindow::free_slot(std::size_t slot) {
  std::int32_t& row = row_of_cell_[slots_[slot].cell];
  if (!is_free(slot) && row == static_cast<std::int32_t>(slot)) {
    row = kNone;
  }
  slots_[slot] = Slot();
}

void ExactWindow::drop(std::size_t cell) {
  const std::int32_t row = row_of_cell_[cell];
  if (row >= 0 && static_cast<std::size_t>(row) < n_slots()) {
    free_slot(static_cast<std::size_t>(row));
  }
  row_of_cell_[cell] = kNone;
}

bool ExactWindow::is_sink(std::size_t cell) const {
  return row_of_cell_[cell] != kNone &&
         sink_of_row_[static_cast<std::size_t>(row_of_cell_[cell])] != 0;
}

void ExactWindow::begin(std::span<const std::int32_t> positions,
                        std::span<const std::size_t> cells) {
  commit(false);
  // All memory first: nothing may throw once cells point at the batch.
  sink_of_row_.resize(n_slots() + positions.size());
  tokens_.reserve(positions.size());
  epoch_++;
  pending_ = true;
  for (std::size_t i = 0; i < positions.size(); i++) {
    const bool sink = positions[i] < spec_.sinks;
    drop(cells[i]);
    tokens_.push_back({cells[i], positions[i], sink});
    row_of_cell_[cells[i]] = static_cast<std::int32_t>(n_slots() + i);
    sink_of_row_[n_slots() + i] = sink ? 1 : 0;
  }
}

std::vector<ExactWindow::Candidate> ExactWindow::candidates_of(
    std::size_t first, std::size_t n_cells, const std::int32_t* cell_positions) const {
  const std::size_t begin = stream_of(first) * rows_per_stream_;
  std::vector<Candidate> result;
  for (std::size_t slot = begin; slot < begin + rows_per_stream_; slot++) {
    if (is_free(slot)) {
      continue;
    }
    const Slot& held = slots_[slot];
    const bool covered = held.cell >= first && held.cell < first + n_cells;
    result.push_back({.cell = covered ? held.cell - first : n_cells,
                      .is_token = false,
                      .index = slot,
                      .sink = sink_of_row_[slot] != 0,
                      .position = covered ? cell_positions[held.cell - first] : held.position,
                      .last_seen = held.last_seen});
  }
  for (std::size_t i = 0; i < tokens_.size(); i++) {
    const Token& token = tokens_[i];
    if (token.cell >= first && token.cell < first + n_cells) {
      result.push_back({.cell = token.cell - first,
                        .is_token = true,
                        .index = i,
                        .sink = token.sink,
                        .position = token.position,
                        .newest = token.position,
                        .last_seen = epoch_});
    }
  }
  return result;
}

void ExactWindow::find_newest(std::span<Candidate> candidates, std::size_t n_cells,
                              const MaskView& mask,
                              std::span<const std::int32_t> query_positions) const {
  for (std::size_t i = 0; i < query_positions.size(); i++) {
    for (Candidate& candidate : candidates) {
      if (candidate.cell < n_cells && candidate.newest < query_positions[i] &&
          mask.sees(i, candidate.cell)) {
        candidate.newest = query_positions[i];
        candidate.last_seen = epoch_;
      }
    }
  }
}

void ExactWindow::plan(std::size_t first, std::size_t n_cells,
                       std::span<const std::int32_t> query_positions,
                       const std::int32_t* cell_positions, const MaskView& mask) {
  std::vector<Candidate> candidates = candidates_of(first, n_cells, cell_positions);
  find_newest(candidates, n_cells, mask, query_positions);
  std::vector<Candidate> kept;
  for (const Candidate& candidate : candidates) {
    const bool passed = candidate.newest != kUnseen &&
                        candidate.newest - candidate.position >= spec_.kept() && !candidate.sink;
    if (!passed) {
      kept.push_back(candidate);
    } else if (!candidate.is_token) {
      given_up_.push_back(candidate.index);
    }
  }
  keep(kept, stream_of(first));
}

void ExactWindow::keep(std::vector<Candidate>& candidates, std::size_t stream) {
  if (candidates.size() > rows_per_stream_) {
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.rank() > b.rank(); });
    for (std::size_t i = rows_per_stream_; i < candidates.size(); i++) {
      n_evicted_in_use_ += candidates[i].last_seen == epoch_ ? 1 : 0;
      if (!candidates[i].is_token) {
        given_up_.push_back(candidates[i].index);
      }
    }
    candidates.resize(rows_per_stream_);
  }
  std::vector<bool> taken(rows_per_stream_, false);
  for (const Candidate& candidate : candidates) {
    if (!candidate.is_token) {
      slots_[candidate.index].last_seen = candidate.last_seen;
      taken[candidate.index - stream * rows_per_stream_] = true;
    }
  }
  std::size_t next = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.is_token) {
      while (taken[next]) {
        next++;
      }
      moves_.push_back({candidate.index, stream * rows_per_stream_ + next++});
    }
  }
}

void ExactWindow::commit(bool moved) {
  if (!pending_) {
    return;
  }
  for (const std::size_t slot : given_up_) {
    free_slot(slot);
  }
  for (const Token& token : tokens_) {
    row_of_cell_[token.cell] = kNone;
  }
  for (const Move& move : moves_) {
    const Token& token = tokens_[move.token];
    if (moved) {
      slots_[move.slot] = {token.cell, token.position, epoch_};
      sink_of_row_[move.slot] = token.sink ? 1 : 0;
      row_of_cell_[token.cell] = static_cast<std::int32_t>(move.slot);
    }
  }
  tokens_.clear();
  moves_.clear();
  given_up_.clear();
  pending_ = false;
  planned_ = false;
}

std::int32_t ExactWindow::restore(std::size_t cell, bool sink, std::int32_t position) {
  drop(cell);
  const std::size_t begin = stream_of(cell) * rows_per_stream_;
  if (rows_per_stream_ == 0) {
    return kNone;
  }
  std::size_t best = begin;
  for (std::size_t slot = begin; slot < begin + rows_per_stream_; slot++) {
    const auto rank = [this](std::size_t at) {
      return std::tuple(slots_[at].last_seen, sink_of_row_[at], slots_[at].position);
    };
    best = rank(slot) < rank(best) ? slot : best;
  }
  free_slot(best);
  slots_[best] = {cell, position, epoch_};
  sink_of_row_[best] = sink ? 1 : 0;
  row_of_cell_[cell] = static_cast<std::int32_t>(best);
  return static_cast<std::int32_t>(best);
}

}  // namespace cqkv
