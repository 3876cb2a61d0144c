// See cqkv/basis.h.
#include "cqkv/basis.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/half.h"
#include "core/round_up.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

constexpr std::size_t kRows = 64;  // rows of a matrix that a kernel takes at once

Status check_sizes(const TensorSpec& spec, const TensorBasis::Parts& parts) {
  if (spec.head_dim() <= 0) {
    return invalid_argument("basis: got heads of " + std::to_string(spec.head_dim()) +
                            " channels, want at least 1");
  }
  const auto n_channels = static_cast<std::size_t>(spec.n_channels());
  const auto check = [](const char* what, std::size_t got, std::size_t want) -> Status {
    if (got != 0 && got != want) {
      return invalid_argument("basis: got " + std::to_string(got) + " numbers of the " + what +
                              ", want " + std::to_string(want));
    }
    return {};
  };
  CQKV_RETURN_IF_ERROR(check("order", parts.order.size(), n_channels));
  CQKV_RETURN_IF_ERROR(check("rotation", parts.rotation.size(),
                             n_channels * static_cast<std::size_t>(spec.head_dim())));
  CQKV_RETURN_IF_ERROR(check("metric", parts.metric.size(), TensorBasis::metric_size(spec)));
  if (!parts.order.empty() && !parts.rotation.empty()) {
    return invalid_argument("basis: got an order and a rotation, want one of them");
  }
  if (!parts.rotation.empty() && spec.head_dim() > TensorBasis::kMaxRotatedDim) {
    return invalid_argument("basis: got a rotation of heads of " + std::to_string(spec.head_dim()) +
                            " channels, want up to " + std::to_string(TensorBasis::kMaxRotatedDim));
  }
  return {};
}

Status check_finite(const char* what, const std::vector<std::uint16_t>& halves) {
  for (std::size_t i = 0; i < halves.size(); i++) {
    if (!std::isfinite(half_to_float(halves[i]))) {
      return invalid_argument("basis: number " + std::to_string(i) + " of the " + what +
                              " is not finite");
    }
  }
  return {};
}

Status check_order(const std::vector<std::uint16_t>& order, std::size_t head_dim) {
  std::vector<bool> seen(head_dim);
  for (std::size_t i = 0; i < order.size(); i++) {
    if (i % head_dim == 0) {
      seen.assign(head_dim, false);
    }
    if (order[i] >= head_dim || seen[order[i]]) {
      return invalid_argument(
          "basis: the order of KV head " + std::to_string(i / head_dim) + " has channel " +
          std::to_string(order[i]) +
          (order[i] >= head_dim ? ", want less than " + std::to_string(head_dim) : " twice"));
    }
    seen[order[i]] = true;
  }
  return {};
}

// Gauss-Jordan with the largest pivot of a column; false if there is no inverse.
bool invert(std::vector<double>& a, std::vector<double>& inverse, std::size_t n) {
  inverse.assign(n * n, 0.0);
  for (std::size_t i = 0; i < n; i++) {
    inverse[i * n + i] = 1.0;
  }
  for (std::size_t column = 0; column < n; column++) {
    std::size_t pivot = column;
    for (std::size_t i = column + 1; i < n; i++) {
      pivot = std::abs(a[i * n + column]) > std::abs(a[pivot * n + column]) ? i : pivot;
    }
    if (!(std::abs(a[pivot * n + column]) > 1e-30)) {
      return false;
    }
    std::swap_ranges(&a[pivot * n], &a[pivot * n] + n, &a[column * n]);
    std::swap_ranges(&inverse[pivot * n], &inverse[pivot * n] + n, &inverse[column * n]);
    const double scale = 1.0 / a[column * n + column];
    for (std::size_t j = 0; j < n; j++) {
      a[column * n + j] *= scale;
      inverse[column * n + j] *= scale;
    }
    for (std::size_t i = 0; i < n; i++) {
      const double factor = i == column ? 0.0 : a[i * n + column];
      for (std::size_t j = 0; j < n && factor != 0.0; j++) {
        a[i * n + j] -= factor * a[column * n + j];
        inverse[i * n + j] -= factor * inverse[column * n + j];
      }
    }
  }
  return true;
}

}  // namespace

std::size_t TensorBasis::metric_size(const TensorSpec& spec) {
  std::size_t size = 0;
  for (const int group_dim : spec.group_dims()) {  // 0 without codes
    size += static_cast<std::size_t>(spec.head_dim()) * static_cast<std::size_t>(group_dim);
  }
  return size;
}

Result<TensorBasis> TensorBasis::create(const TensorSpec& spec, Parts parts) {
  CQKV_RETURN_IF_ERROR(check_sizes(spec, parts));
  CQKV_RETURN_IF_ERROR(check_finite("rotation", parts.rotation));
  CQKV_RETURN_IF_ERROR(check_finite("metric", parts.metric));
  CQKV_RETURN_IF_ERROR(check_order(parts.order, static_cast<std::size_t>(spec.head_dim())));
  TensorBasis result;
  result.parts_ = std::move(parts);
  result.spec_ = spec;
  result.n_kv_heads_ = static_cast<std::size_t>(spec.n_kv_heads());
  result.head_dim_ = static_cast<std::size_t>(spec.head_dim());
  if (result.has_rotation()) {
    CQKV_RETURN_IF_ERROR(result.set_rotations());
  }
  if (result.has_metric()) {
    result.set_metric();
  }
  return result;
}

Status TensorBasis::set_rotations() {
  stride_ = round_up(head_dim_, kernels::kChannelLanes);
  matrix_floats_ = round_up(head_dim_, kRows) * stride_;
  rotation_.resize(n_kv_heads_ * matrix_floats_);
  inverse_.resize(rotation_.size());
  for (int kv_head = 0; kv_head < spec_.n_kv_heads(); kv_head++) {
    CQKV_RETURN_IF_ERROR(set_rotation(kv_head));
  }
  return {};
}

Status TensorBasis::set_rotation(int kv_head) {
  const std::size_t n = std::max<std::size_t>(head_dim_, 1);
  const std::uint16_t* halves = parts_.rotation.data() + static_cast<std::size_t>(kv_head) * n * n;
  float* rotation = rotation_.data() + static_cast<std::size_t>(kv_head) * matrix_floats_;
  float* inverse = inverse_.data() + static_cast<std::size_t>(kv_head) * matrix_floats_;
  std::vector<double> matrix(n * n);
  std::vector<double> inverted;
  for (std::size_t i = 0; i < n * n; i++) {
    matrix[i] = half_to_float(halves[i]);
    rotation[i % n * stride_ + i / n] = half_to_float(halves[i]);
  }
  if (!invert(matrix, inverted, n)) {
    return invalid_argument("basis: the rotation of KV head " + std::to_string(kv_head) +
                            " has no inverse");
  }
  for (std::size_t i = 0; i < n * n; i++) {
    inverse[i % n * stride_ + i / n] = static_cast<float>(inverted[i]);
    if (!std::isfinite(inverse[i % n * stride_ + i / n])) {
      return invalid_argument("basis: the rotation of KV head " + std::to_string(kv_head) +
                              " has an inverse beyond 32-bit floats");
    }
  }
  return {};
}

void TensorBasis::set_metric() {
  metric_.resize(parts_.metric.size());
  std::size_t begin = 0;
  for (int kv_head = 0; kv_head < spec_.n_kv_heads(); kv_head++) {
    const auto dim = static_cast<std::size_t>(spec_.coded(kv_head) ? spec_.group_dim(kv_head) : 0);
    metric_begin_.push_back(begin);
    const std::size_t end = begin + head_dim_ * dim;
    for (; begin < end; begin += dim * dim) {
      for (std::size_t i = 0; i < dim * dim; i++) {
        metric_[begin + i % dim * dim + i / dim] = half_to_float(parts_.metric[begin + i]);
      }
    }
  }
}

std::size_t TensorBasis::bytes() const {
  return (parts_.order.size() + parts_.rotation.size() + parts_.metric.size()) *
         sizeof(std::uint16_t);
}

// out = matrix^T in for each head.
void TensorBasis::multiply(const std::vector<float>& matrices, const float* in, float* out) const {
  const kernels::KernelTable& kernel = kernels::active();
  const float one = 1.0F;
  for (std::size_t head = 0; head < n_kv_heads_; head++) {
    const float* matrix = matrices.data() + head * matrix_floats_;
    float sums[kMaxRotatedDim] = {};
    for (std::size_t first = 0; first < head_dim_; first += kRows) {
      float part[kRows] = {};
      std::copy_n(in + head * head_dim_ + first, std::min(kRows, head_dim_ - first), part);
      kernel.accumulate_rows(part, 1, matrix + first * stride_, stride_, static_cast<int>(stride_),
                             &one, sums, stride_);
    }
    std::copy_n(sums, head_dim_, out + head * head_dim_);
  }
}

void TensorBasis::to_components(const float* row, float* components) const {
  const std::size_t n = n_kv_heads_ * head_dim_;
  if (has_rotation()) {
    multiply(rotation_, row, components);
    return;
  }
  if (!has_order()) {
    std::copy_n(row, n, components);
  }
  for (std::size_t i = 0; i < parts_.order.size(); i++) {
    components[i] = row[i / head_dim_ * head_dim_ + parts_.order[i]];
  }
}

void TensorBasis::to_channels(const float* components, float* row) const {
  const std::size_t n = n_kv_heads_ * head_dim_;
  if (has_rotation()) {
    multiply(inverse_, components, row);
    return;
  }
  if (!has_order()) {
    std::copy_n(components, n, row);
  }
  for (std::size_t i = 0; i < parts_.order.size(); i++) {
    row[i / head_dim_ * head_dim_ + parts_.order[i]] = components[i];
  }
}

void TensorBasis::to_metric(int kv_head, int group, const float* components, float* z) const {
  const auto dim = static_cast<std::size_t>(spec_.group_dim(kv_head));
  const float* matrix = metric_.data() + metric_begin_[static_cast<std::size_t>(kv_head)] +
                        static_cast<std::size_t>(group) * dim * dim;
  std::fill_n(z, dim, 0.0F);
  for (std::size_t j = 0; j < dim; j++, matrix += dim) {
    for (std::size_t i = 0; i < dim; i++) {
      z[i] += components[j] * matrix[i];
    }
  }
}

}  // namespace cqkv
