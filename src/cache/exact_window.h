// The bookkeeping of the exact window: which cells of a cache buffer have an exact row
// beside their codes, and where. A query uses the exact row of a cell if
//
//     position(query) - position(cell) < window,  or the cell is a sink:
//                                                 its position was < sinks on arrival
//
// whatever the batch, so tokens of the current graph have exact rows too, in a batch
// area that all layers share; after each layer's attention the rows that later queries
// will need move into the layer's pool. The rows themselves, and the copying, are the
// caller's (src/device/kv_buffer.h); their format is exact_row.h, how many a pool has is
// window_pool.h.
//
// Tokens can be taken back: an answer is regenerated, a message edited, a draft rejected. The
// window is then the tokens before that place, which may be far back. So where several tokens
// of a sequence come at once (a prompt, a draft), the rows of the windows that end before the first
// and after the last of them are marked, and the pool keeps marked rows, latest marks first, as
// far as it has room (docs/design/exact_window.md).
//
// One graph: begin (tokens stored) -> plan, once a stream, with the first attention ->
// moves, after the attention of each layer -> commit, before anything else happens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/mask_view.h"
#include "cache/window_pool.h"

namespace cqkv {

class ExactWindow {
 public:
  /// A cell without an exact row.
  static constexpr std::int32_t kNone = -1;

  /// A token of the batch whose row goes to a pool slot.
  struct Move {
    std::size_t token = 0;
    std::size_t slot = 0;
  };

  /// What a saved row says of its token beside its position.
  struct Saved {
    bool sink = false;
    bool needed = true;          ///< Less than kept() before the newest when it was last seen.
    std::uint16_t mark_age = 0;  ///< 0: not marked; 1: by the latest mark; and so on.
  };

  /// An empty window over n_streams streams, each with such a pool.
  void configure(WindowSpec spec, std::size_t n_streams, std::size_t cells_per_stream,
                 WindowPool pool);

  bool enabled() const { return spec_.enabled(); }

  const WindowSpec& spec() const { return spec_; }

  /// The rows of all streams.
  WindowPool pool() const {
    const std::size_t n_streams = pool_.n_rows == 0 ? 0 : slots_.size() / pool_.n_rows;
    return {pool_.n_rows * n_streams, pool_.n_spare * n_streams};
  }

  /// Cells of all streams and of one; 0 and 1 without a window.
  std::size_t n_cells() const { return row_of_cell_.size(); }

  std::size_t cells_per_stream() const { return cells_per_stream_; }

  /// Rows of the whole pool.
  std::size_t n_slots() const { return slots_.size(); }

  /// Bytes of this table, and of one for n_cells cells and n_rows rows.
  std::size_t bytes() const { return table_bytes(row_of_cell_.size(), slots_.size()); }

  static std::size_t table_bytes(std::size_t n_cells, std::size_t n_rows) {
    return n_cells * sizeof(std::int32_t) + n_rows * (sizeof(Slot) + 1);
  }

  /// No cell has a row.
  void clear();

  // ---- One graph ----

  /// Token i, at positions[i], is being stored in cells[i]; rows of the cells' former
  /// tokens are dropped. Commits the graph before, if that was not done.
  void begin(std::span<const std::int32_t> positions, std::span<const std::size_t> cells);

  /// Counts graphs and restored sequences: layers remember when they stored and moved rows.
  std::uint64_t epoch() const { return epoch_; }

  /// Whether the tokens of `begin` still await their plan.
  bool needs_plan() const { return pending_ && !planned_; }

  /// Decides for one stream which rows the pool keeps after this graph, if it has not room for
  /// all. Kept are, in this order: rows that a query of this graph sees from less than `kept()`
  /// positions ahead, and sinks that one sees; marked rows that one sees, latest marks first, as
  /// many as the pool has beside what its sequences need; what was needed when it was last seen;
  /// other marked rows; and the rest. Where that says nothing, rows seen last, then newer
  /// positions.
  ///
  /// @param first, n_cells     the cells that the mask covers, all of one stream.
  /// @param query_positions    of the mask's queries.
  /// @param cell_positions     of the cells from `first` on.
  void plan(std::size_t first, std::size_t n_cells, std::span<const std::int32_t> query_positions,
            const std::int32_t* cell_positions, const MaskView& mask);

  void finish_plan() { planned_ = true; }

  std::span<const Move> moves() const { return moves_; }

  /// Ends the graph. `moved`: every layer that stored rows has moved them; otherwise
  /// (the graph was broken off) its tokens keep their codes alone.
  void commit(bool moved);

  /// Rows in use that had to be given up because the pool is too small, ever.
  std::uint64_t n_evicted_in_use() const { return n_evicted_in_use_; }

  // ---- Reading ----

  /// For each cell from `first` on: kNone, a slot of the pool, or n_slots() + token for a
  /// token of the batch.
  const std::int32_t* rows(std::size_t first) const { return row_of_cell_.data() + first; }

  std::int32_t row(std::size_t cell) const { return row_of_cell_[cell]; }

  /// For each row, pool and batch: 1 if it is a sink's.
  const std::uint8_t* sinks() const { return sink_of_row_.data(); }

  bool is_sink(std::size_t cell) const;

  // ---- Saved states and copies (no graph pending) ----

  /// Of a cell with a row in the pool.
  Saved saved(std::size_t cell) const;

  /// Gives a cell a pool slot, evicting another if need be; kNone if the pool has none.
  std::int32_t restore(std::size_t cell, const Saved& saved, std::int32_t position);

  /// Drops a cell's row.
  void drop(std::size_t cell);

 private:
  // What decides how long a row is kept.
  struct Worth {
    std::uint64_t last_seen = 0;  // epoch
    std::uint64_t mark = 0;       // number of the latest mark that it has; 0: none
    std::int32_t n_together = 0;  // tokens of its sequence that came with it
    bool needed = false;          // was less than kept() before the newest when last seen
  };

  struct Slot {
    std::size_t cell = 0;
    std::int32_t position = 0;  // on arrival; orders evictions only
    bool used = false;
    Worth worth;
  };

  struct Token {
    std::size_t cell = 0;
    std::int32_t position = 0;
    bool sink = false;
    Worth worth;
  };

  static constexpr std::int32_t kNothingRestored = INT32_MAX;

  struct Candidate;
  struct Run;
  enum class Tier;

  std::size_t stream_of(std::size_t cell) const { return cell / cells_per_stream_; }

  void free_slot(std::size_t slot);
  void find_newest(std::span<Candidate> candidates, std::size_t n_cells, const MaskView& mask,
                   std::span<const std::int32_t> query_positions) const;
  std::vector<Candidate> candidates_of(std::size_t first, std::size_t n_cells,
                                       const std::int32_t* cell_positions) const;
  static std::vector<Run> runs_of(std::span<const Candidate> candidates, const MaskView& mask,
                                  std::span<const std::int32_t> query_positions);
  void mark_run(std::span<Candidate> candidates, std::size_t n_cells, const MaskView& mask,
                const Run& run);
  void set_mark(std::span<Candidate> candidates, std::size_t n_cells, const MaskView& mask,
                std::size_t query, std::int64_t begin, std::int64_t end);
  static void unmark(std::span<Candidate> candidates, std::uint64_t mark);
  Tier tier_of(const Candidate& candidate) const;
  void set_tiers(std::vector<Candidate>& candidates) const;
  void evict(std::vector<Candidate>& candidates);
  void place(std::span<const Candidate> candidates, std::size_t stream);

  WindowSpec spec_;
  WindowPool pool_;
  std::size_t cells_per_stream_ = 1;
  std::vector<std::int32_t> row_of_cell_;
  std::vector<Slot> slots_;                // [stream, row]
  std::vector<std::uint8_t> sink_of_row_;  // [slots, then tokens of the batch]

  std::vector<Token> tokens_;
  std::vector<Move> moves_;
  std::vector<std::size_t> given_up_;  // slots whose cells lose them at commit
  bool pending_ = false;
  bool planned_ = false;
  std::uint64_t epoch_ = 1;
  std::uint64_t n_marks_ = 0;
  std::int32_t restored_position_ = kNothingRestored;  // the last one since a graph
  std::uint64_t n_evicted_in_use_ = 0;
};

}  // namespace cqkv
