// See budget.h.
#include "calibration/budget.h"

#include <algorithm>
#include <utility>

#include "calibration/rates.h"
#include "codebook/byte_centroids.h"

namespace cqkv {
namespace {

Status round_side(std::vector<TensorCodebook>& side) {
  for (TensorCodebook& tensor : side) {
    auto rounded = rounded_to_bytes(tensor);
    if (!rounded.ok()) {
      return rounded.status();
    }
    tensor = *std::move(rounded);
  }
  return {};
}

}  // namespace

Status fill_codebook(const std::vector<RatedSide>& sides, double bits, Codebook& codebook) {
  std::vector<std::vector<RateOption>> heads;
  double n_channels = 0;
  std::size_t n_layers = 0;
  for (const RatedSide& side : sides) {
    heads.insert(heads.end(), side.tensor.heads.begin(), side.tensor.heads.end());
    n_channels += side.tensor.codebooks.front().n_channels();
    n_layers = std::max(n_layers, static_cast<std::size_t>(side.layer) + 1);
  }
  const std::vector<std::size_t> chosen = choose_rates(heads, bits * n_channels);
  const std::size_t* next = chosen.data();
  std::vector<LayerCodebook> layers(n_layers);
  for (const RatedSide& side : sides) {
    auto tensor = assemble(side.tensor, next);
    if (!tensor.ok()) {
      return tensor.status();
    }
    next += side.tensor.heads.size();
    LayerCodebook& layer = layers[static_cast<std::size_t>(side.layer)];
    (side.kind == KvKind::kKey ? layer.k : layer.v).push_back(*std::move(tensor));
  }
  codebook.layers = std::move(layers);
  return {};
}

Status round_to_bytes(Codebook& codebook) {
  for (LayerCodebook& layer : codebook.layers) {
    CQKV_RETURN_IF_ERROR(round_side(layer.k));
    CQKV_RETURN_IF_ERROR(round_side(layer.v));
  }
  return {};
}

CostMeter::CostMeter(const std::vector<RatedSide>& sides, ThreadParallelFor& parallel)
    : sides_(sides), parallel_(parallel), n_rows_(sides.size(), 0) {
  for (const RatedSide& side : sides) {
    sums_.emplace_back(side.tensor.codebooks.size(),
                       std::vector<double>(side.tensor.heads.size(), 0.0));
  }
}

Status CostMeter::add(const KvRows& rows) {
  const auto found = std::find_if(sides_.begin(), sides_.end(), [&](const RatedSide& side) {
    return side.layer == rows.layer && side.kind == rows.kind;
  });
  if (found == sides_.end()) {
    return {};
  }
  const auto index = static_cast<std::size_t>(found - sides_.begin());
  const auto& codebooks = found->tensor.codebooks;
  const auto n_rates = codebooks.size();
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  constexpr std::size_t kRows = 256;
  const std::size_t n_strips = (rows.n_tokens + kRows - 1) / kRows;
  std::vector<std::vector<double>> sums(n_strips * n_rates);
  parallel_.run(static_cast<int>(sums.size()), [&](int task, int) {
    const auto at = static_cast<std::size_t>(task);
    const std::size_t first = at / n_rates * kRows;
    const std::size_t n = std::min(kRows, rows.n_tokens - first);
    sums[at] = coding_losses(codebooks[at % n_rates], rows.rows + first * n_channels,
                             rows.gradients + first * n_channels, n);
    for (double& loss : sums[at]) {
      loss *= static_cast<double>(n);
    }
  });
  for (std::size_t at = 0; at < sums.size(); at++) {
    for (std::size_t head = 0; head < sums[at].size(); head++) {
      sums_[index][at % n_rates][head] += sums[at][head];
    }
  }
  n_rows_[index] += rows.n_tokens;
  return {};
}

template <typename Function>
void CostMeter::update_losses(std::vector<RatedSide>& sides, const Function& update) const {
  for (std::size_t i = 0; i < sides.size(); i++) {
    for (std::size_t head = 0; head < sides[i].tensor.heads.size(); head++) {
      std::vector<RateOption>& options = sides[i].tensor.heads[head];
      for (std::size_t rate = 0; rate < options.size() && n_rows_[i] > 0; rate++) {
        update(options[rate].loss, sums_[i][rate][head] / static_cast<double>(n_rows_[i]));
      }
    }
  }
}

void CostMeter::set_losses(std::vector<RatedSide>& sides) const {
  update_losses(sides, [](double& loss, double measured) { loss = measured; });
}

void CostMeter::raise_losses(std::vector<RatedSide>& sides) const {
  update_losses(sides, [](double& loss, double measured) { loss = std::max(loss, measured); });
}

}  // namespace cqkv
