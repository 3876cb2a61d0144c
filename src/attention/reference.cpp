// See reference.h.
#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"

namespace cqkv {
namespace {

double half_at(const std::uint8_t* bytes) {
  std::uint16_t half = 0;
  std::memcpy(&half, bytes, sizeof(half));
  return half_to_float(half);
}

double float_at(const std::uint8_t* bytes) {
  float value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// Adds the residual of one row, spelled out.
void add_residual(const ExactRows& exact, const ExactRows::Side& side, std::int32_t row,
                  int n_channels, double* to) {
  const ExactRowLayout layout{n_channels};
  const std::uint8_t* bytes = row < exact.n_pool
                                  ? side.pool + row * layout.row_bytes()
                                  : side.batch + (row - exact.n_pool) * layout.row_bytes();
  for (int i = 0; i < n_channels; i++) {
    const double scale = float_at(bytes + i / 32 * sizeof(float));
    to[i] += scale * static_cast<std::int8_t>(bytes[layout.residual_offset() + i]);
  }
}

// Turns one row of components back, spelled out.
void to_channels(const TensorBasis& basis, int n_kv_heads, int head_dim, const double* components,
                 double* row) {
  for (int i = 0; i < n_kv_heads * head_dim; i++) {
    const int head = i / head_dim;
    if (basis.has_order()) {
      row[head * head_dim + basis.order(head)[i % head_dim]] = components[i];
    } else if (basis.has_rotation()) {
      row[i] = 0;
      for (int j = 0; j < head_dim; j++) {
        row[i] +=
            static_cast<double>(basis.inverse(head)[j * basis.inverse_stride() + i % head_dim]) *
            components[head * head_dim + j];
      }
    } else {
      row[i] = components[i];
    }
  }
}

// Rows as stored, decoded: [n_cells, n_kv_heads, head_dim]; with `exact`, those of cells
// that have an exact row are that row.
std::vector<double> stored_rows(const AttentionCall& call, KvKind kind, bool exact) {
  const bool is_key = kind == KvKind::kKey;
  const CacheSide& side = is_key ? call.k : call.v;
  const std::size_t n_cells = call.n_cells;
  const int n_kv_heads = call.n_kv_heads;
  const int head_dim = is_key ? call.head_dim_k : call.head_dim_v;
  const int n_channels = n_kv_heads * head_dim;
  std::vector<double> rows(n_cells * n_channels);
  if (side.codec == nullptr) {
    for (std::size_t i = 0; i < rows.size(); i++) {
      const std::size_t cell = i / n_channels;
      const std::size_t head = i % n_channels / head_dim;
      rows[i] =
          half_at(side.data + cell * side.row_bytes + head * side.head_bytes + i % head_dim * 2);
    }
    return rows;
  }
  const CodeLayout& layout = side.codec->layout();
  std::vector<std::uint16_t> codes(layout.n_codes());
  std::vector<float> row(n_channels);
  for (std::size_t cell = 0; cell < n_cells; cell++) {
    get_codes(layout, side.data, cell, codes.data());
    side.codec->codebook().decode_components(codes.data(), 1, row.data(), row.size());
    std::vector<double> components(row.begin(), row.end());
    if (exact && call.exact != nullptr && call.exact->rows[cell] >= 0) {
      add_residual(*call.exact, is_key ? call.exact->k : call.exact->v, call.exact->rows[cell],
                   n_channels, components.data());
    }
    to_channels(side.codec->basis(), n_kv_heads, head_dim, components.data(),
                rows.data() + cell * n_channels);
  }
  return rows;
}

// Which channel of a row each summed component of a key is, [n_channels of the sums].
std::vector<std::size_t> summed_channels(const AttentionCall& call) {
  const KeySums& sums = *call.key_sums;
  const TensorBasis& basis = call.k.codec->basis();
  const int group_dim = call.k.codec->spec().group_dim(0);
  std::vector<std::size_t> channels;
  for (int c = 0; c < sums.n_channels(); c++) {
    int channel = sums.groups()[c / group_dim] * group_dim + c % group_dim;
    if (basis.has_order()) {  // that was a component
      channel += basis.order(channel / call.head_dim_k)[channel % call.head_dim_k] -
                 channel % call.head_dim_k;
    }
    channels.push_back(static_cast<std::size_t>(channel));
  }
  return channels;
}

// Adds M_h K_t to the values [n_cells, n_kv_heads, head_dim_v].
void add_predictions(const AttentionCall& call, std::vector<double>& values) {
  const KeySums& sums = *call.key_sums;
  const std::vector<double> keys = stored_rows(call, KvKind::kKey, false);
  const std::vector<std::size_t> channels = summed_channels(call);
  const std::size_t n_keys = static_cast<std::size_t>(call.n_kv_heads) * call.head_dim_k;
  const std::size_t stride = sums.matrix_stride();
  for (std::size_t i = 0; i < values.size(); i++) {
    const std::size_t head = i / call.head_dim_v;  // of all cells
    const double* key = keys.data() + head / call.n_kv_heads * n_keys;
    const float* matrix =
        sums.matrix(static_cast<int>(head % call.n_kv_heads)) + i % call.head_dim_v;
    double sum = 0;
    for (std::size_t c = 0; c < channels.size(); c++) {
      sum += matrix[c * stride] * key[channels[c]];
    }
    values[i] += sum;
  }
}

void rotate(const RopeParams& params, const RopeFrequencies& frequencies, std::int32_t position,
            double* head) {
  const int half = params.n_dims / 2;
  for (int i = 0; i < half; i++) {
    const bool neox = params.mode == RopeMode::kNeox;
    double& x = head[neox ? i : 2 * i];
    double& y = head[neox ? i + half : 2 * i + 1];
    const double angle = frequencies.frequency[i] * position;
    const double magnitude = frequencies.magnitude;
    const double rotated_x = (x * std::cos(angle) - y * std::sin(angle)) * magnitude;
    y = (x * std::sin(angle) + y * std::cos(angle)) * magnitude;
    x = rotated_x;
  }
}

// The rule of the window, for a cell that the query sees.
bool is_exact(const AttentionCall& call, int query, std::size_t cell) {
  if (call.exact == nullptr || call.exact->rows[cell] < 0) {
    return false;
  }
  return call.exact->sinks[call.exact->rows[cell]] != 0 ||
         call.exact->query_positions[query] - call.positions[cell] < call.exact->window;
}

double mask_at(const AttentionCall& call, int query, std::size_t cell) {
  return call.mask == nullptr ? 0.0 : half_at(call.mask + query * call.mask_bytes + cell * 2);
}

double capped(double score, double softcap) {
  return softcap > 0 ? softcap * std::tanh(score / softcap) : score;
}

}  // namespace

std::vector<double> reference_keys(const AttentionCall& call, bool exact) {
  std::vector<double> keys = stored_rows(call, KvKind::kKey, exact);
  if (call.rope != nullptr && call.k.codec != nullptr) {
    const RopeFrequencies frequencies = RopeFrequencies::of(call.rope->params());
    for (std::size_t i = 0; i < call.n_cells * call.n_kv_heads; i++) {
      rotate(call.rope->params(), frequencies, call.positions[i / call.n_kv_heads],
             keys.data() + i * call.head_dim_k);
    }
  }
  return keys;
}

std::vector<double> reference_values(const AttentionCall& call, bool exact) {
  std::vector<double> values = stored_rows(call, KvKind::kValue, exact);
  if (call.key_sums != nullptr && !exact) {
    add_predictions(call, values);
  }
  return values;
}

std::vector<double> reference_attend(const AttentionCall& call) {
  const bool has_exact = call.exact != nullptr;
  const std::vector<double> keys[2] = {
      reference_keys(call, false), has_exact ? reference_keys(call, true) : std::vector<double>()};
  const std::vector<double> values[2] = {
      reference_values(call, false),
      has_exact ? reference_values(call, true) : std::vector<double>()};
  std::vector<double> out(static_cast<std::size_t>(call.n_queries) * call.n_heads *
                          call.head_dim_v);
  std::vector<double> scores(call.n_cells);
  for (int row = 0; row < call.n_queries * call.n_heads; row++) {
    const int query = row / call.n_heads;
    const int head = row % call.n_heads;
    const int kv_head = head / (call.n_heads / call.n_kv_heads);
    const std::uint8_t* q = call.queries + head * call.query_head_bytes + query * call.query_bytes;
    double top = -std::numeric_limits<double>::infinity();
    for (std::size_t t = 0; t < call.n_cells; t++) {
      const double* key = keys[is_exact(call, query, t) ? 1 : 0].data() +
                          (t * call.n_kv_heads + kv_head) * call.head_dim_k;
      double dot = 0;
      for (int d = 0; d < call.head_dim_k; d++) {
        dot += float_at(q + d * sizeof(float)) * key[d];
      }
      scores[t] = capped(dot * call.scale, call.softcap) + mask_at(call, query, t);
      top = std::max(top, scores[t]);
    }
    if (std::isinf(top)) {
      continue;
    }
    double sum = 0;
    double* to = out.data() + static_cast<std::size_t>(row) * call.head_dim_v;
    for (std::size_t t = 0; t < call.n_cells; t++) {
      const double p = std::exp(scores[t] - top);
      const double* value = values[is_exact(call, query, t) ? 1 : 0].data() +
                            (t * call.n_kv_heads + kv_head) * call.head_dim_v;
      sum += p;
      for (int d = 0; d < call.head_dim_v; d++) {
        to[d] += p * value[d];
      }
    }
    if (call.sink_logits != nullptr) {
      sum += std::exp(call.sink_logits[head] - top);
    }
    for (int d = 0; d < call.head_dim_v; d++) {
      to[d] /= sum;
    }
  }
  return out;
}

}  // namespace cqkv
