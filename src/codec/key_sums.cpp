// See key_sums.h.
#include "codec/key_sums.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/round_up.h"

namespace cqkv {
namespace {

// Entries of the tables of values; larger groups would come in parts.
constexpr int kMaxSummedDim = 8;

Status check_groups(const TensorCodebook& keys, const std::vector<int>& groups) {
  if (!keys.spec().uniform() || keys.spec().group_dim(0) > kMaxSummedDim) {
    return unsupported("key sums: got keys of " + keys.spec().name() +
                       ", want KV heads alike, with groups of at most " +
                       std::to_string(kMaxSummedDim) + " channels");
  }
  if (groups.empty()) {
    return invalid_argument("key sums: got no groups, want at least one");
  }
  int least = 0;
  for (const int group : groups) {
    if (group < least || group >= keys.n_codes()) {
      return invalid_argument("key sums: got group " + std::to_string(group) +
                              ", want ascending numbers, here from " + std::to_string(least) +
                              " to " + std::to_string(keys.n_codes() - 1));
    }
    least = group + 1;
  }
  return {};
}

// The centroids of the chosen groups, as those of one KV head.
Result<TensorCodebook> chosen_centroids(const TensorCodebook& keys,
                                        const std::vector<int>& groups) {
  const CodecSpec spec = keys.spec().spec(0);
  const int n_groups = keys.spec().n_groups(0);
  std::vector<float> centroids;
  for (const int group : groups) {
    const std::vector<float> of_group = keys.group_floats(group / n_groups, group % n_groups);
    centroids.insert(centroids.end(), of_group.begin(), of_group.end());
  }
  return TensorCodebook::create(spec, 1, static_cast<int>(groups.size()) * spec.group_dim,
                                centroids);
}

}  // namespace

Result<KeySums> KeySums::create(const TensorCodebook& keys, std::vector<int> groups, int head_dim_v,
                                std::span<const float> matrices,
                                const kernels::KernelTable& kernel) {
  CQKV_RETURN_IF_ERROR(check_groups(keys, groups));
  const std::size_t n_channels = groups.size() * static_cast<std::size_t>(keys.spec().group_dim(0));
  const std::size_t wanted = n_channels * static_cast<std::size_t>(std::max(head_dim_v, 0)) *
                             static_cast<std::size_t>(keys.n_kv_heads());
  if (head_dim_v <= 0 || matrices.size() != wanted) {
    return invalid_argument("key sums: got matrices of " + std::to_string(matrices.size()) +
                            " elements, want " + std::to_string(wanted) + ": " +
                            std::to_string(keys.n_kv_heads()) + " of " +
                            std::to_string(head_dim_v) + " by " + std::to_string(n_channels));
  }
  auto centroids = chosen_centroids(keys, groups);
  if (!centroids.ok()) {
    return centroids.status();
  }
  KeySums result(keys, *std::move(centroids), std::move(groups), head_dim_v);
  result.set_matrices(matrices);
  if (ByteTables::usable(keys.spec().code_bits(), kernel)) {
    ByteTables tables = ByteTables::values(result.centroids_,
                                           ByteTables::order_for(keys.spec().code_bits(), kernel));
    if (tables.precise()) {
      result.tables_ = std::move(tables);
    }
  }
  return result;
}

KeySums::KeySums(const TensorCodebook& keys, TensorCodebook centroids, std::vector<int> groups,
                 int head_dim_v)
    : centroids_(std::move(centroids)),
      groups_(std::move(groups)),
      n_kv_heads_(keys.n_kv_heads()),
      head_dim_v_(head_dim_v),
      n_key_codes_(keys.n_codes()),
      matrix_stride_(round_up(static_cast<std::size_t>(head_dim_v), kernels::kChannelLanes)),
      matrix_floats_(matrix_stride_ * round_up(static_cast<std::size_t>(centroids_.head_dim()),
                                               kernels::kBlockCells)),
      matrices_(matrix_floats_ * static_cast<std::size_t>(keys.n_kv_heads())) {
}

void KeySums::set_matrices(std::span<const float> matrices) {
  const auto n = static_cast<std::size_t>(n_channels());
  const auto rows = static_cast<std::size_t>(head_dim_v_);
  for (std::size_t i = 0; i < matrices.size(); i++) {
    const std::size_t head = i / (rows * n);
    matrices_[head * matrix_floats_ + i % n * matrix_stride_ + i / n % rows] = matrices[i];
  }
}

}  // namespace cqkv
