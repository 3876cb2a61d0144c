// See exact_window.h.
#include "cache/exact_window.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace cqkv {
namespace {

constexpr std::int64_t kUnseen = std::numeric_limits<std::int64_t>::min();

// Longer runs of tokens are prompts: llama.cpp's drafts have 64 tokens at most, and the last
// accepted one before them.
constexpr std::int32_t kLongestDraft = 65;

}  // namespace

// Which rows outlive others; higher ones do.
enum class ExactWindow::Tier {
  kRest,
  kMarked,     // by an older mark, or its sequence is not in the graph
  kWasNeeded,  // by a sequence that is not in the graph
  kMarkedNow,  // among the latest marks of the graph's sequences
  kNeeded,
};

// Something that has a row in this graph: a slot of the pool or a token of the batch.
struct ExactWindow::Candidate {
  std::size_t cell = 0;  // from the mask's first on
  bool is_token = false;
  std::size_t index = 0;  // slot or token
  bool sink = false;
  std::int64_t position = 0;
  std::int64_t newest = kUnseen;  // position of the newest query that sees it
  Worth worth;
  Tier tier = Tier::kRest;

  // Larger: kept rather. No two are equal.
  auto rank() const {
    const bool marked = tier == Tier::kMarkedNow || tier == Tier::kMarked;
    return std::tuple(tier, marked ? worth.mark : worth.last_seen, sink, position, is_token, index);
  }
};

// Tokens of one sequence that come in a row: queries [first, first + n) at positions from
// `position` on.
struct ExactWindow::Run {
  std::size_t first = 0;
  std::int32_t n = 0;
  std::int64_t position = 0;
};

void ExactWindow::configure(WindowSpec spec, std::size_t n_streams, std::size_t cells_per_stream,
                            WindowPool pool) {
  *this = ExactWindow();
  spec_ = spec;
  if (enabled()) {
    pool_ = pool;
    cells_per_stream_ = cells_per_stream;
    row_of_cell_.assign(n_streams * cells_per_stream, kNone);
    slots_.resize(n_streams * pool.n_rows);
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
  if (slots_[slot].used && row == static_cast<std::int32_t>(slot)) {
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
  restored_position_ = kNothingRestored;
  pending_ = true;
  for (std::size_t i = 0; i < positions.size(); i++) {
    const bool sink = positions[i] < spec_.sinks;
    drop(cells[i]);
    Worth worth;
    worth.last_seen = epoch_;
    worth.needed = true;
    tokens_.push_back({cells[i], positions[i], sink, worth});
    row_of_cell_[cells[i]] = static_cast<std::int32_t>(n_slots() + i);
    sink_of_row_[n_slots() + i] = sink ? 1 : 0;
  }
}

std::vector<ExactWindow::Candidate> ExactWindow::candidates_of(
    std::size_t first, std::size_t n_cells, const std::int32_t* cell_positions) const {
  std::vector<Candidate> result;
  for (std::size_t i = 0; i < tokens_.size(); i++) {
    const Token& token = tokens_[i];
    if (token.cell >= first && token.cell < first + n_cells) {
      result.push_back({.cell = token.cell - first,
                        .is_token = true,
                        .index = i,
                        .sink = token.sink,
                        .position = token.position,
                        .newest = token.position,
                        .worth = token.worth,
                        .tier = Tier::kRest});
    }
  }
  const std::size_t begin = stream_of(first) * pool_.n_rows;
  for (std::size_t slot = begin; slot < begin + pool_.n_rows; slot++) {
    const Slot& held = slots_[slot];
    if (!held.used) {
      continue;
    }
    const bool covered = held.cell >= first && held.cell < first + n_cells;
    result.push_back({.cell = covered ? held.cell - first : n_cells,
                      .is_token = false,
                      .index = slot,
                      .sink = sink_of_row_[slot] != 0,
                      .position = covered ? cell_positions[held.cell - first] : held.position,
                      .newest = kUnseen,
                      .worth = held.worth,
                      .tier = Tier::kRest});
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
      }
    }
  }
  for (Candidate& candidate : candidates) {
    if (candidate.newest != kUnseen) {
      candidate.worth.last_seen = epoch_;
      candidate.worth.needed =
          candidate.sink || candidate.newest - candidate.position < spec_.kept();
    }
  }
}

// ---- Marks -----------------------------------------------------------------

// The first candidates are the tokens of the stream's queries, in their order; no runs where they
// are not.
std::vector<ExactWindow::Run> ExactWindow::runs_of(std::span<const Candidate> candidates,
                                                   const MaskView& mask,
                                                   std::span<const std::int32_t> query_positions) {
  std::vector<Run> runs;
  if (query_positions.empty() || candidates.size() < query_positions.size() ||
      !candidates[query_positions.size() - 1].is_token) {
    return runs;
  }
  for (std::size_t i = 0; i < query_positions.size(); i++) {
    const bool goes_on = i > 0 && query_positions[i] == query_positions[i - 1] + 1 &&
                         mask.sees(i, candidates[i - 1].cell);
    if (!goes_on) {
      runs.push_back({.first = i, .n = 0, .position = query_positions[i]});
    }
    runs.back().n++;
  }
  return runs;
}

// Marks the rows that a query sees at positions [begin, end).
void ExactWindow::set_mark(std::span<Candidate> candidates, std::size_t n_cells,
                           const MaskView& mask, std::size_t query, std::int64_t begin,
                           std::int64_t end) {
  n_marks_++;
  for (Candidate& candidate : candidates) {
    if (candidate.cell < n_cells && candidate.position >= begin && candidate.position < end &&
        mask.sees(query, candidate.cell)) {
      candidate.worth.mark = n_marks_;
    }
  }
}

void ExactWindow::unmark(std::span<Candidate> candidates, std::uint64_t mark) {
  for (Candidate& candidate : candidates) {
    candidate.worth.mark = candidate.worth.mark == mark ? 0 : candidate.worth.mark;
  }
}

// Before a run's first token is where an edited message leads back to, after its last one where a
// regenerated answer does; into a draft a rejection may lead anywhere. A long prompt that comes in
// several batches is one prompt: nothing leads back to its middle.
void ExactWindow::mark_run(std::span<Candidate> candidates, std::size_t n_cells,
                           const MaskView& mask, const Run& run) {
  const std::int64_t end = run.position + run.n;
  const std::size_t last = run.first + static_cast<std::size_t>(run.n) - 1;
  const auto before = std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& c) {
    return c.cell < n_cells && c.position == run.position - 1 && mask.sees(run.first, c.cell);
  });
  if (run.n <= kLongestDraft) {
    set_mark(candidates, n_cells, mask, last, run.position - spec_.kept(), end);
  } else {
    if (before != candidates.end() && before->worth.n_together > kLongestDraft) {
      unmark(candidates, before->worth.mark);
    } else {
      set_mark(candidates, n_cells, mask, run.first, run.position - spec_.kept(), run.position);
    }
    set_mark(candidates, n_cells, mask, last, end - spec_.kept(), end);
  }
  for (std::size_t i = run.first; i <= last; i++) {
    candidates[i].worth.n_together = run.n;
  }
}

// ---- What stays ------------------------------------------------------------

ExactWindow::Tier ExactWindow::tier_of(const Candidate& candidate) const {
  const bool seen = candidate.newest != kUnseen;
  if (candidate.worth.needed) {
    return seen ? Tier::kNeeded : Tier::kWasNeeded;
  }
  if (candidate.worth.mark == 0) {
    return Tier::kRest;
  }
  return seen ? Tier::kMarkedNow : Tier::kMarked;
}

// Of the marked rows only as many come before what other sequences need as are the pool's spare.
void ExactWindow::set_tiers(std::vector<Candidate>& candidates) const {
  std::vector<Candidate*> marked;
  for (Candidate& candidate : candidates) {
    candidate.tier = tier_of(candidate);
    if (candidate.tier == Tier::kMarkedNow) {
      marked.push_back(&candidate);
    }
  }
  if (marked.size() > pool_.n_spare) {
    const auto end = marked.begin() + static_cast<std::ptrdiff_t>(pool_.n_spare);
    std::nth_element(marked.begin(), end, marked.end(),
                     [](const Candidate* a, const Candidate* b) { return a->rank() > b->rank(); });
    std::for_each(end, marked.end(), [](Candidate* candidate) { candidate->tier = Tier::kMarked; });
  }
}

// Leaves as many as the pool has rows.
void ExactWindow::evict(std::vector<Candidate>& candidates) {
  if (candidates.size() <= pool_.n_rows) {
    return;
  }
  set_tiers(candidates);
  const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(pool_.n_rows);
  std::nth_element(candidates.begin(), end, candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.rank() > b.rank(); });
  std::for_each(end, candidates.end(), [this](const Candidate& candidate) {
    n_evicted_in_use_ += candidate.tier == Tier::kNeeded ? 1 : 0;
    if (!candidate.is_token) {
      given_up_.push_back(candidate.index);
    }
  });
  candidates.resize(pool_.n_rows);
}

// Slots for the tokens that stay.
void ExactWindow::place(std::span<const Candidate> candidates, std::size_t stream) {
  const std::size_t begin = stream * pool_.n_rows;
  std::vector<bool> taken(pool_.n_rows, false);
  for (const Candidate& candidate : candidates) {
    if (candidate.is_token) {
      tokens_[candidate.index].worth = candidate.worth;
    } else {
      slots_[candidate.index].worth = candidate.worth;
      taken[candidate.index - begin] = true;
    }
  }
  std::size_t next = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.is_token) {
      while (taken[next]) {
        next++;
      }
      moves_.push_back({candidate.index, begin + next++});
    }
  }
}

void ExactWindow::plan(std::size_t first, std::size_t n_cells,
                       std::span<const std::int32_t> query_positions,
                       const std::int32_t* cell_positions, const MaskView& mask) {
  std::vector<Candidate> candidates = candidates_of(first, n_cells, cell_positions);
  find_newest(candidates, n_cells, mask, query_positions);
  for (const Run& run : runs_of(candidates, mask, query_positions)) {
    if (run.n > 1) {
      mark_run(candidates, n_cells, mask, run);
    }
  }
  evict(candidates);
  place(candidates, stream_of(first));
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
      slots_[move.slot] = {token.cell, token.position, true, token.worth};
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

// ---- Saved states ----------------------------------------------------------

ExactWindow::Saved ExactWindow::saved(std::size_t cell) const {
  const auto row = static_cast<std::size_t>(row_of_cell_[cell]);
  const Worth& worth = slots_[row].worth;
  const std::uint64_t age = worth.mark == 0 ? 0 : n_marks_ - worth.mark + 1;
  return {.sink = sink_of_row_[row] != 0,
          .needed = worth.needed,
          .mark_age = static_cast<std::uint16_t>(
              std::min<std::uint64_t>(age, std::numeric_limits<std::uint16_t>::max()))};
}

std::int32_t ExactWindow::restore(std::size_t cell, const Saved& saved, std::int32_t position) {
  drop(cell);
  const std::size_t begin = stream_of(cell) * pool_.n_rows;
  if (pool_.n_rows == 0) {
    return kNone;
  }
  const auto rank = [this](std::size_t at) {
    const Worth& worth = slots_[at].worth;
    const bool marked = worth.mark != 0 || worth.needed;
    return std::tuple(slots_[at].used, worth.needed, marked, worth.last_seen, sink_of_row_[at],
                      slots_[at].position);
  };
  std::size_t best = begin;
  for (std::size_t slot = begin; slot < begin + pool_.n_rows; slot++) {
    best = rank(slot) < rank(best) ? slot : best;
  }
  free_slot(best);
  n_marks_ = std::max<std::uint64_t>(n_marks_, saved.mark_age);
  const std::uint64_t mark = saved.mark_age == 0 ? 0 : n_marks_ - saved.mark_age + 1;
  // A sequence is restored in the order of its positions. What is left in the pool of tokens that
  // are gone must give way to it, not it to them: it is seen later.
  epoch_ += position <= restored_position_ ? 1 : 0;
  restored_position_ = position;
  slots_[best] = {cell, position, true, {epoch_, mark, 0, saved.needed}};
  sink_of_row_[best] = saved.sink ? 1 : 0;
  row_of_cell_[cell] = static_cast<std::int32_t>(best);
  return static_cast<std::int32_t>(best);
}

}  // namespace cqkv
