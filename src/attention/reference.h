// The plain oracle of attention: decodes, rotates with exact angles, takes the
// softmax and sums, all in double and without blocks. For tests only; slow.
#pragma once

#include <vector>

#include "attention/attention.h"

namespace cqkv {

/// The result of a call, [n_queries, n_heads, head_dim_v]; `out` of the call is not used.
/// Angles are RopeFrequencies' times the position, without further rounding.
std::vector<double> reference_attend(const AttentionCall& call);

/// The keys [n_cells, n_kv_heads, head_dim_k] that the queries are multiplied with; `exact`:
/// of the exact rows where cells have one.
std::vector<double> reference_keys(const AttentionCall& call, bool exact = false);

/// The values [n_cells, n_kv_heads, head_dim_v].
std::vector<double> reference_values(const AttentionCall& call, bool exact = false);

}  // namespace cqkv
