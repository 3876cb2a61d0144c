// The check of rows for values that are not finite; see kv_rows.h.
#include "model_pass/kv_rows.h"

#include <cmath>
#include <string>

namespace cqkv {
namespace {

Status check_values(const KvRows& rows, const float* values, const char* what) {
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  for (std::size_t i = 0; i < rows.n_tokens * n_channels; i++) {
    if (!std::isfinite(values[i])) {
      return corrupt("layer " + std::to_string(rows.layer) + ", " +
                     std::string(kv_kind_name(rows.kind)) + " " + what + " of token " +
                     std::to_string(rows.first_token + i / n_channels) + ", channel " +
                     std::to_string(i % n_channels) + ": got " + std::to_string(values[i]) +
                     ", want a finite number; the model's weights or its file may be damaged");
    }
  }
  return {};
}

}  // namespace

Status check_finite(const KvRows& rows) {
  CQKV_RETURN_IF_ERROR(check_values(rows, rows.rows, "row"));
  if (rows.gradients != nullptr) {
    CQKV_RETURN_IF_ERROR(check_values(rows, rows.gradients, "gradient"));
  }
  return {};
}

}  // namespace cqkv
