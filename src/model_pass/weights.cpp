// pack_weights cuts all requests into strips of rows, one task each; see weights.h.
#include "model_pass/weights.h"

#include <algorithm>
#include <vector>

namespace cqkv {
namespace {

// Rows of a task; a multiple of every table's panel, since forwards a strip's rows
// become columns and must fill whole panels.
constexpr std::size_t kStrip = 64;

struct Strip {
  const PackRequest* request;
  std::size_t row;  // from the request's first
  std::size_t n_rows;
};

std::size_t n_rows_of(const PackRequest& request) {
  return request.n_rows == 0 ? static_cast<std::size_t>(request.weight->n_rows) : request.n_rows;
}

}  // namespace

void pack_weights(std::span<const PackRequest> requests, Direction direction,
                  const dense::Table& table, ParallelFor& parallel) {
  const bool forward = direction == Direction::kForward;
  std::vector<Strip> strips;
  std::size_t widest = 0;
  for (const PackRequest& request : requests) {
    const std::size_t n_out = n_rows_of(request);
    const auto n_in = static_cast<std::size_t>(request.weight->n_columns);
    widest = std::max(widest, n_in);
    request.packed->resize(forward ? n_in : n_out, forward ? n_out : n_in, table.panel);
    for (std::size_t row = 0; row < n_out; row += kStrip) {
      strips.push_back({&request, row, std::min(kStrip, n_out - row)});
    }
  }
  std::vector<dense::Buffer> rows(static_cast<std::size_t>(parallel.n_threads()));
  for (dense::Buffer& buffer : rows) {
    buffer.resize(kStrip * widest);
  }
  parallel.run(static_cast<int>(strips.size()), [&](int task, int thread) {
    const Strip& strip = strips[static_cast<std::size_t>(task)];
    const PackRequest& request = *strip.request;
    dense::Buffer& buffer = rows[static_cast<std::size_t>(thread)];
    dequantize_rows(*request.weight, request.first + strip.row, strip.n_rows, buffer.data());
    const auto n_in = static_cast<std::ptrdiff_t>(request.weight->n_columns);
    const dense::View view{buffer.data(), n_in, 1};
    dense::PackPart part;
    if (forward) {
      part = {0, static_cast<std::size_t>(n_in), strip.row, strip.n_rows};
    } else {
      part = {strip.row, strip.n_rows, 0, static_cast<std::size_t>(n_in)};
    }
    table.pack(request.packed->data.data(), request.packed->n_inner, part,
               forward ? transposed(view) : view);
  });
}

}  // namespace cqkv
