// The bookkeeping of the exact window: which cells of a cache buffer have an exact row
// beside their codes, and where. A query uses the exact row of a cell if
//
//     position(query) - position(cell) < window,  or the cell is a sink:
//                                                 its position was < sinks on arrival
//
// whatever the batch, so tokens of the graph under way have exact rows too, in a batch
// area that all layers share; after each layer's attention the rows that later queries
// will need move into the layer's pool. The rows themselves, and the copying, are the
// caller's (src/device/kv_buffer.h); their format is exact_row.h.
//
// One graph: begin (tokens stored) -> plan, once a stream, with the first attention ->
// moves, after the attention of each layer -> commit, before anything else happens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cqkv {

/// How much is kept exactly; both 0: nothing.
struct WindowSpec {
  int window = 0;  ///< Most recent tokens.
  int sinks = 0;   ///< First tokens of a sequence.

  /// Tokens behind the window whose rows are kept, unused, so that taking back that many
  /// tokens (speculative decoding, a regenerated word) leaves the window whole.
  static constexpr int kRollback = 16;

  bool enabled() const { return window > 0 || sinks > 0; }

  /// Tokens behind the newest that keep their row.
  int kept() const { return window == 0 ? 0 : window + kRollback; }

  /// Pool rows that one sequence can fill.
  std::size_t rows_per_sequence() const {
    return static_cast<std::size_t>(kept()) + static_cast<std::size_t>(sinks);
  }

  bool operator==(const WindowSpec&) const = default;
};

/// Pool rows of one stream of n_cells cells that n_sequences sequences share.
std::size_t window_rows(const WindowSpec& spec, std::size_t n_cells, std::size_t n_sequences);

/// Visibility as attention gets it: f16 at data + query * row_bytes + 2 * cell, -inf where
/// the query does not see the cell. Null: all is visible.
struct MaskView {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;

  bool sees(std::size_t query, std::size_t cell) const;
};

class ExactWindow {
 public:
  /// A cell without an exact row.
  static constexpr std::int32_t kNone = -1;

  /// A token of the batch whose row goes to a pool slot.
  struct Move {
    std::size_t token = 0;
    std::size_t slot = 0;
  };

  /// An empty window over n_streams streams, each with its own part of the pool.
  void configure(WindowSpec spec, std::size_t n_streams, std::size_t cells_per_stream,
                 std::size_t rows_per_stream);

  bool enabled() const { return spec_.enabled(); }

  const WindowSpec& spec() const { return spec_; }

  /// Cells of all streams and of one; 0 and 1 without a window.
  std::size_t n_cells() const { return row_of_cell_.size(); }

  std::size_t cells_per_stream() const { return cells_per_stream_; }

  /// Rows of the whole pool.
  std::size_t n_slots() const { return slots_.size(); }

  /// Bytes of this table, and of one for so many cells and rows.
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

  /// Counts graphs: layers remember in which they stored and moved rows.
  std::uint64_t epoch() const { return epoch_; }

  /// Whether the tokens of `begin` still await their plan.
  bool needs_plan() const { return pending_ && !planned_; }

  /// Decides for one stream which rows the pool keeps after this graph. Rows that are seen
  /// only from `kept()` or more positions ahead are given up. If the pool is too small, rows
  /// seen longest ago go first, then the oldest positions.
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

  /// Gives a cell a pool slot, evicting another if need be; kNone if the pool has none.
  std::int32_t restore(std::size_t cell, bool sink, std::int32_t position);

  /// Drops a cell's row.
  void drop(std::size_t cell);

 private:
  struct Slot {
    std::size_t cell = 0;
    std::int32_t position = 0;    // on arrival; orders evictions only
    std::uint64_t last_seen = 0;  // epoch; 0: free
  };

  struct Token {
    std::size_t cell = 0;
    std::int32_t position = 0;
    bool sink = false;
  };

  struct Candidate;

  std::size_t stream_of(std::size_t cell) const { return cell / cells_per_stream_; }

  bool is_free(std::size_t slot) const { return slots_[slot].last_seen == 0; }

  void free_slot(std::size_t slot);
  void find_newest(std::span<Candidate> candidates, std::size_t n_cells, const MaskView& mask,
                   std::span<const std::int32_t> query_positions) const;
  std::vector<Candidate> candidates_of(std::size_t first, std::size_t n_cells,
                                       const std::int32_t* cell_positions) const;
  void keep(std::vector<Candidate>& candidates, std::size_t stream);

  WindowSpec spec_;
  std::size_t cells_per_stream_ = 1;
  std::size_t rows_per_stream_ = 0;
  std::vector<std::int32_t> row_of_cell_;
  std::vector<Slot> slots_;                // [stream, row]
  std::vector<std::uint8_t> sink_of_row_;  // [slots, then tokens of the batch]

  std::vector<Token> tokens_;
  std::vector<Move> moves_;
  std::vector<std::size_t> given_up_;  // slots whose cells lose them at commit
  bool pending_ = false;
  bool planned_ = false;
  std::uint64_t epoch_ = 1;
  std::uint64_t n_evicted_in_use_ = 0;
};

}  // namespace cqkv
