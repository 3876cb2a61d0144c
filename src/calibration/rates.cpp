// See rates.h.
#include "calibration/rates.h"

#include <algorithm>
#include <numeric>

namespace cqkv {
namespace {

// The options of the lower convex hull, by rising bits: each costs less than the one before, and
// the gain a bit falls.
std::vector<std::size_t> hull_of(const std::vector<RateOption>& options) {
  std::vector<std::size_t> order(options.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return options[a].bits != options[b].bits ? options[a].bits < options[b].bits
                                              : options[a].loss < options[b].loss;
  });
  const auto gain = [&](std::size_t from, std::size_t to) {
    return (options[from].loss - options[to].loss) / (options[to].bits - options[from].bits);
  };
  std::vector<std::size_t> hull;
  for (const std::size_t next : order) {
    if (!hull.empty() && options[next].loss >= options[hull.back()].loss) {
      continue;  // more bits for nothing
    }
    while (hull.size() > 1 && gain(hull[hull.size() - 2], hull.back()) <= gain(hull.back(), next)) {
      hull.pop_back();
    }
    hull.push_back(next);
  }
  return hull;
}

}  // namespace

std::vector<double> coding_losses(const TensorCodebook& codebook, const float* rows,
                                  const float* gradients, std::size_t n_rows) {
  const auto n_channels = static_cast<std::size_t>(codebook.n_channels());
  const auto head_dim = static_cast<std::size_t>(codebook.head_dim());
  std::vector<std::uint16_t> codes(n_rows * static_cast<std::size_t>(codebook.n_codes()));
  std::vector<float> decoded(n_rows * n_channels);
  std::vector<double> losses(static_cast<std::size_t>(codebook.n_kv_heads()));
  codebook.encode(rows, n_rows, n_channels, codes.data());
  codebook.decode(codes.data(), n_rows, decoded.data(), n_channels);
  for (std::size_t t = 0; t < n_rows; t++) {
    const float* row = rows + t * n_channels;
    const float* gradient = gradients + t * n_channels;
    const float* coded = decoded.data() + t * n_channels;
    for (std::size_t head = 0; head < losses.size(); head++) {
      double change = 0;
      for (std::size_t d = head * head_dim; d < (head + 1) * head_dim; d++) {
        change += static_cast<double>(gradient[d]) * (static_cast<double>(coded[d]) - row[d]);
      }
      losses[head] += change * change / static_cast<double>(n_rows);
    }
  }
  return losses;
}

std::vector<std::size_t> choose_rates(std::span<const std::vector<RateOption>> heads,
                                      double budget) {
  struct Step {
    std::size_t head;
    std::size_t to;  // on the head's hull
    double bits;
    double gain;  // a bit
  };

  std::vector<std::vector<std::size_t>> hulls;
  std::vector<Step> steps;
  double spent = 0;
  for (std::size_t head = 0; head < heads.size(); head++) {
    const auto& options = heads[head];
    hulls.push_back(hull_of(options));
    const auto& hull = hulls.back();
    spent += options[hull.front()].bits;
    for (std::size_t i = 1; i < hull.size(); i++) {
      const RateOption& from = options[hull[i - 1]];
      const RateOption& to = options[hull[i]];
      const double bits = to.bits - from.bits;
      steps.push_back({head, i, bits, (from.loss - to.loss) / bits});
    }
  }
  // Gains of one head fall, so its steps keep their order.
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.gain > b.gain; });
  std::vector<std::size_t> at(heads.size(), 0);
  for (const Step& step : steps) {
    if (at[step.head] + 1 == step.to && spent + step.bits <= budget) {
      at[step.head] = step.to;
      spent += step.bits;
    }
  }
  for (std::size_t head = 0; head < heads.size(); head++) {
    at[head] = hulls[head][at[head]];
  }
  return at;
}

}  // namespace cqkv
