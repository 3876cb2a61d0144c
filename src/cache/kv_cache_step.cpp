// KvCache: one step, from its tokens to their attention. What arrives is coded and, for the window,
// kept exactly; after a layer's attention the rows that stay exact move to its pool.
#include <algorithm>
#include <cstring>
#include <string>

#include "attention/mask_view.h"
#include "cache/kv_cache.h"
#include "core/exceptions.h"
#include "core/side_text.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

constexpr std::size_t kChunk = 16;  // tokens that one thread works on

int n_chunks_of(std::size_t n_tokens) {
  return static_cast<int>((n_tokens + kChunk - 1) / kChunk);
}

}  // namespace

KvCache::TokenChunk KvCache::chunk_at(int chunk, std::size_t n_tokens) {
  const std::size_t first = static_cast<std::size_t>(chunk) * kChunk;
  return {first, std::min(kChunk, n_tokens - first)};
}

// ---------------------------------------------------------------- begin and end

Status KvCache::plan(const StepTokens& tokens) {
  CQKV_RETURN_IF_ERROR(check_idle("plan"));
  if (tokens.positions.size() != tokens.cells.size()) {
    return invalid_argument("cache: a step of " + std::to_string(tokens.positions.size()) +
                            " positions and " + std::to_string(tokens.cells.size()) + " cells");
  }
  CQKV_RETURN_IF_ERROR(check_cells(tokens.cells));
  return without_exceptions("beginning a step", [&] {
    batch_.positions.assign(tokens.positions.begin(), tokens.positions.end());
    batch_.has_angles = false;
    if (window_.enabled()) {
      window_.begin(tokens.positions, tokens.cells);
    }
    for (std::size_t i = 0; i < tokens.cells.size(); i++) {
      cells_.set(tokens.cells[i], tokens.positions[i]);
    }
    first_layer_ = tokens.first_layer;
    step_++;
    in_step_ = true;
  });
}

Status KvCache::commit() {
  if (!in_step_) {
    return invalid_argument("cache: commit without a step; plan one first");
  }
  bool moved = true;
  for (const auto& tensor : tensors_) {
    moved = moved && (tensor->stored_step != step_ || tensor->moved_step == step_);
  }
  end_step(moved);
  return {};
}

void KvCache::abandon() {
  if (in_step_) {
    end_step(false);
  }
}

void KvCache::end_step(bool moved) {
  if (window_.enabled()) {
    window_.commit(moved);
  }
  in_step_ = false;
}

// ---------------------------------------------------------------- storing

void KvCache::compute_angles(const RopeParams& rope) {
  const std::size_t half = static_cast<std::size_t>(rope.n_dims) / 2;
  batch_.rope = rope;
  batch_.cosines.resize(batch_.positions.size() * half);
  batch_.sines.resize(batch_.positions.size() * half);
  for (std::size_t t = 0; t < batch_.positions.size(); t++) {
    rope_row_ggml(rope, batch_.positions[t], batch_.cosines.data() + t * half,
                  batch_.sines.data() + t * half);
  }
  batch_.has_angles = true;
}

// Makes the batch's angles those of this layer.
Status KvCache::set_rotation(Tensor& tensor, std::size_t n_tokens, const RopeParams* rope) {
  if (rope == nullptr) {
    tensor.rotated = false;
    return {};
  }
  if (!in_step_ || !knows_positions(tensor.given.layer)) {
    return invalid_argument("cache: rotated keys of layer " + std::to_string(tensor.given.layer) +
                            " are stored without positions; plan a step first");
  }
  if (batch_.positions.size() != n_tokens) {
    return invalid_argument("cache: layer " + std::to_string(tensor.given.layer) + " stores " +
                            std::to_string(n_tokens) + " keys, the step has " +
                            std::to_string(batch_.positions.size()) + " tokens");
  }
  CQKV_RETURN_IF_ERROR(rope->check(tensor.given.codebook->head_dim()));
  if (!batch_.has_angles || !(batch_.rope == *rope)) {
    compute_angles(*rope);
  }
  tensor.rope = *rope;
  tensor.rotated = true;
  return {};
}

// Rows as they are coded: before the rotation, as components. `channels` has room for one row.
void KvCache::take_rows(const Tensor& tensor, const TokenRows& rows, TokenChunk chunk,
                        float* channels, float* out) const {
  const TensorCodebook& codebook = *tensor.given.codebook;
  const auto n_channels = static_cast<std::size_t>(codebook.n_channels());
  const bool plain = codebook.basis().plain();
  for (std::size_t t = chunk.first; t < chunk.first + chunk.n; t++) {
    float* row = plain ? out + t * n_channels : channels;
    std::memcpy(row, rows.data + t * rows.row_bytes, n_channels * sizeof(float));
    if (tensor.rotated) {
      const std::size_t half = static_cast<std::size_t>(tensor.rope.n_dims) / 2;
      rope_inverse(tensor.rope, batch_.cosines.data() + t * half, batch_.sines.data() + t * half,
                   codebook.n_kv_heads(), codebook.head_dim(), row);
    }
    if (!plain) {
      codebook.basis().to_components(row, out + t * n_channels);
    }
  }
}

// Codes of all rows into workspace.codes. Threads share the tokens, and where these are few, as in
// generation, the groups: the centroids of a token's groups are megabytes over all layers.
void KvCache::encode_rows(const Tensor& tensor, const TokenRows& rows, std::size_t n_tokens,
                          ParallelFor& parallel, CacheWorkspace& workspace) const {
  const TensorCodebook& codebook = *tensor.given.codebook;
  const auto n_channels = static_cast<std::size_t>(codebook.n_channels());
  const int n_codes = tensor.codec->layout().n_codes();
  workspace.rows.resize(n_tokens * n_channels);
  workspace.codes.resize(n_tokens * static_cast<std::size_t>(n_codes));
  // Here, since tasks must not throw.
  workspace.decoded.resize(static_cast<std::size_t>(parallel.n_threads()) * n_channels);
  const int n_chunks = n_chunks_of(n_tokens);
  parallel.run(n_chunks, [&](int chunk, int thread) {
    take_rows(tensor, rows, chunk_at(chunk, n_tokens),
              workspace.decoded.data() + static_cast<std::size_t>(thread) * n_channels,
              workspace.rows.data());
  });
  const int n_parts = n_chunks == 0 ? 1 : (parallel.n_threads() + n_chunks - 1) / n_chunks;
  parallel.run(n_chunks * n_parts, [&](int task, int) {
    const TokenChunk chunk = chunk_at(task / n_parts, n_tokens);
    const int first = n_codes * (task % n_parts) / n_parts;
    const int end = n_codes * (task % n_parts + 1) / n_parts;
    codebook.encode_groups(
        workspace.rows.data() + chunk.first * n_channels, chunk.n, n_channels, first, end - first,
        workspace.codes.data() + chunk.first * static_cast<std::size_t>(n_codes));
  });
}

// What the codes lose. `decoded` has room for one row.
void KvCache::write_exact_rows(const Tensor& tensor, const CacheWorkspace& workspace,
                               TokenChunk chunk, float* decoded, std::uint8_t* exact) {
  const auto n_channels = static_cast<std::size_t>(tensor.given.codebook->n_channels());
  const auto n_codes = static_cast<std::size_t>(tensor.codec->layout().n_codes());
  for (std::size_t t = chunk.first; t < chunk.first + chunk.n; t++) {
    tensor.given.codebook->decode_components(workspace.codes.data() + t * n_codes, 1, decoded,
                                             n_channels);
    write_exact_row(tensor.exact, workspace.rows.data() + t * n_channels, decoded,
                    exact + t * tensor.exact.row_bytes());
  }
}

KvCache::BatchRows& KvCache::batch_rows(const Tensor& tensor) {
  return tensor.given.kind == KvKind::kKey ? key_rows_ : value_rows_;
}

std::uint8_t* KvCache::begin_exact_rows(Tensor& tensor, std::size_t n_tokens) {
  BatchRows& rows = batch_rows(tensor);
  rows.owner = nullptr;  // until there is memory
  rows.bytes.resize(std::max(rows.bytes.size(), n_tokens * tensor.exact.row_bytes()));
  rows.owner = &tensor;
  return rows.bytes.data();
}

Status KvCache::store(Tensor& tensor, const TokenRows& rows, std::span<const std::size_t> cells,
                      ParallelFor& parallel, CacheWorkspace& workspace) {
  const bool exact = uses_window(tensor.given.layer);
  if (exact && (!in_step_ || cells.size() != batch_.positions.size())) {
    return invalid_argument("cache: layer " + std::to_string(tensor.given.layer) + " stores " +
                            std::to_string(cells.size()) + " rows, the step has " +
                            std::to_string(in_step_ ? batch_.positions.size() : 0) + " tokens");
  }
  encode_rows(tensor, rows, cells.size(), parallel, workspace);
  if (exact) {
    std::uint8_t* out = begin_exact_rows(tensor, cells.size());
    parallel.run(n_chunks_of(cells.size()), [&](int chunk, int thread) {
      const auto n_channels = static_cast<std::size_t>(tensor.given.codebook->n_channels());
      write_exact_rows(tensor, workspace, chunk_at(chunk, cells.size()),
                       workspace.decoded.data() + static_cast<std::size_t>(thread) * n_channels,
                       out);
    });
    tensor.stored_step = step_;
  }
  const auto n_codes = static_cast<std::size_t>(tensor.codec->layout().n_codes());
  for (std::size_t t = 0; t < cells.size(); t++) {
    put_codes(tensor.codec->layout(), tensor.codes, cells[t], workspace.codes.data() + t * n_codes);
    cells_.occupy(cells[t]);
  }
  return {};
}

Status KvCache::store_keys(int layer, const TokenRows& rows, std::span<const std::size_t> cells,
                           const RopeParams* rope, ParallelFor& parallel,
                           CacheWorkspace& workspace) {
  Tensor* tensor = nullptr;
  CQKV_RETURN_IF_ERROR(find_tensor(KvKind::kKey, layer, tensor));
  CQKV_RETURN_IF_ERROR(check_cells(cells));
  return without_exceptions("storing keys", [&]() -> Status {
    CQKV_RETURN_IF_ERROR(set_rotation(*tensor, cells.size(), rope));
    return store(*tensor, rows, cells, parallel, workspace);
  });
}

Status KvCache::store_values(int layer, const TokenRows& rows, std::span<const std::size_t> cells,
                             ParallelFor& parallel, CacheWorkspace& workspace) {
  Tensor* tensor = nullptr;
  CQKV_RETURN_IF_ERROR(find_tensor(KvKind::kValue, layer, tensor));
  CQKV_RETURN_IF_ERROR(check_cells(cells));
  return without_exceptions("storing values",
                            [&] { return store(*tensor, rows, cells, parallel, workspace); });
}

// ---------------------------------------------------------------- attention

Status KvCache::check_streams(std::span<const StreamAttention> streams) const {
  for (const StreamAttention& stream : streams) {
    CQKV_RETURN_IF_ERROR(check_range("attention", stream.first_cell, stream.call.n_cells));
    if (stream.first_cell % kBlockCells != 0) {
      return invalid_argument("cache: attention from cell " + std::to_string(stream.first_cell) +
                              " on, want a multiple of " + std::to_string(kBlockCells));
    }
  }
  return {};
}

// With the first attention of a step: which rows stay exact after it.
Status KvCache::plan_window(std::span<const StreamAttention> streams) {
  std::size_t n_queries = 0;
  for (const StreamAttention& stream : streams) {
    n_queries += static_cast<std::size_t>(stream.call.n_queries);
  }
  if (!in_step_ || n_queries != batch_.positions.size()) {
    return invalid_argument("cache: " + std::to_string(n_queries) + " queries, but " +
                            std::to_string(in_step_ ? batch_.positions.size() : 0) +
                            " tokens were stored");
  }
  if (!window_.needs_plan()) {
    return {};
  }
  std::size_t first_query = 0;
  for (const StreamAttention& stream : streams) {
    const auto n = static_cast<std::size_t>(stream.call.n_queries);
    window_.plan(stream.first_cell, stream.call.n_cells,
                 std::span(batch_.positions).subspan(first_query, n),
                 cells_.positions(stream.first_cell), {stream.call.mask, stream.call.mask_bytes});
    first_query += n;
  }
  window_.finish_plan();
  return {};
}

// The exact rows of a side; none where it is not coded.
Status KvCache::exact_side(const Tensor* tensor, ExactRows::Side& side) {
  if (tensor == nullptr) {
    return {};
  }
  const BatchRows& rows = batch_rows(*tensor);
  if (rows.owner != tensor || tensor->stored_step != step_) {
    return invalid_argument(
        "cache: " + side_text(tensor->given.kind, tensor->given.layer) +
        " are read in a step that did not store them, or after another layer stored its own");
  }
  side = {tensor->pool, rows.bytes.data()};
  return {};
}

Status KvCache::exact_rows(const Tensor* k, const Tensor* v,
                           std::span<const StreamAttention> streams, ExactRows& rows) {
  CQKV_RETURN_IF_ERROR(plan_window(streams));
  CQKV_RETURN_IF_ERROR(exact_side(k, rows.k));
  CQKV_RETURN_IF_ERROR(exact_side(v, rows.v));
  rows.sinks = window_.sinks();
  rows.n_pool = static_cast<std::int32_t>(window_.n_slots());
  rows.window = window_.spec().window;
  return {};
}

// A cell that could not be restored must not be seen by any query.
Status KvCache::check_visible(std::size_t first, const AttentionCall& call) const {
  if (!cells_.any_invalid(first, call.n_cells)) {
    return {};
  }
  const MaskView mask{call.mask, call.mask_bytes};
  for (std::size_t t = 0; t < call.n_cells; t++) {
    if (cells_.at(first + t) != CellTable::kInvalid) {
      continue;
    }
    for (int i = 0; i < call.n_queries; i++) {
      if (mask.sees(static_cast<std::size_t>(i), t)) {
        return {StatusCode::kMismatch,
                "a token whose saved state could not be restored would be used; process the "
                "prompt again"};
      }
    }
  }
  return {};
}

// The codec that the kernels in use and the keys' rotation want: made on first use, and when either
// changes.
void KvCache::renew_codec(Tensor& tensor) const {
  const kernels::KernelTable& kernel = kernels::active();
  const RopeParams* rope = tensor.rotated ? &tensor.rope : nullptr;
  if (options_.byte_tables && !tensor.codec->is_for(rope, kernel)) {
    tensor.codec = std::make_unique<const TensorCodec>(*tensor.given.codebook, tensor.given.kind,
                                                       rope, kernel);
  }
}

void KvCache::fill_side(Tensor* tensor, std::size_t first_cell, CacheSide& side) const {
  if (tensor == nullptr) {
    return;
  }
  renew_codec(*tensor);
  side = {};
  side.codec = tensor->codec.get();
  side.data = tensor->codes + first_cell / kBlockCells * tensor->codec->layout().block_bytes();
}

// The angles of the keys' rotation, one table for all layers with the same; null without one.
const RopeTable* KvCache::rope_table(const Tensor& keys) {
  if (!keys.rotated) {
    return nullptr;
  }
  RopeTable* table = nullptr;
  for (const auto& known : rope_tables_) {
    table = known->params() == keys.rope ? known.get() : table;
  }
  if (table == nullptr) {
    table = rope_tables_.emplace_back(std::make_unique<RopeTable>(keys.rope)).get();
  }
  if (!batch_.positions.empty()) {
    table->reserve(*std::max_element(batch_.positions.begin(), batch_.positions.end()) + 1);
  }
  return table;
}

Status KvCache::attend_streams(Tensor* k, Tensor* v, std::span<StreamAttention> streams,
                               const ExactRows* exact, ParallelFor& parallel,
                               CacheWorkspace& workspace) {
  const RopeTable* rope = k != nullptr ? rope_table(*k) : nullptr;
  const int layer = (k != nullptr ? k : v)->given.layer;
  std::size_t first_query = 0;
  for (StreamAttention& stream : streams) {
    AttentionCall& call = stream.call;
    fill_side(k, stream.first_cell, call.k);
    fill_side(v, stream.first_cell, call.v);
    call.positions = knows_positions(layer) ? cells_.positions(stream.first_cell) : nullptr;
    call.rope = rope;
    ExactRows rows;
    if (exact != nullptr) {
      rows = *exact;
      rows.rows = window_.rows(stream.first_cell);
      rows.query_positions = batch_.positions.data() + first_query;
      call.exact = &rows;
      first_query += static_cast<std::size_t>(call.n_queries);
    }
    CQKV_RETURN_IF_ERROR(check_visible(stream.first_cell, call));
    const Status status = cqkv::attend(call, parallel, workspace.attention);
    call.exact = nullptr;
    CQKV_RETURN_IF_ERROR(status);
  }
  return {};
}

Status KvCache::attend(int layer, std::span<StreamAttention> streams, ParallelFor& parallel,
                       CacheWorkspace& workspace) {
  Tensor* k = find(KvKind::kKey, layer);
  Tensor* v = find(KvKind::kValue, layer);
  if (k == nullptr && v == nullptr) {
    return invalid_argument("cache: it has no keys and no values of layer " +
                            std::to_string(layer));
  }
  CQKV_RETURN_IF_ERROR(check_streams(streams));
  return without_exceptions("attending", [&] {
    return uses_window(layer) ? attend_exactly(k, v, streams, parallel, workspace)
                              : attend_streams(k, v, streams, nullptr, parallel, workspace);
  });
}

// With a window: beside codes exact rows, which move to the pool afterwards.
Status KvCache::attend_exactly(Tensor* k, Tensor* v, std::span<StreamAttention> streams,
                               ParallelFor& parallel, CacheWorkspace& workspace) {
  ExactRows exact;
  CQKV_RETURN_IF_ERROR(exact_rows(k, v, streams, exact));
  CQKV_RETURN_IF_ERROR(attend_streams(k, v, streams, &exact, parallel, workspace));
  move_exact_rows(k);
  move_exact_rows(v);
  return {};
}

void KvCache::move_exact_rows(Tensor* tensor) {
  if (tensor == nullptr || tensor->moved_step == step_) {
    return;
  }
  const std::uint8_t* rows = batch_rows(*tensor).bytes.data();
  const std::size_t bytes = tensor->exact.row_bytes();
  for (const ExactWindow::Move& move : window_.moves()) {
    std::memcpy(tensor->pool + move.slot * bytes, rows + move.token * bytes, bytes);
  }
  tensor->moved_step = step_;
}

}  // namespace cqkv
