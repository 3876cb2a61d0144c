// See pair_stats.h.
#include "eval/pair_stats.h"

#include <algorithm>
#include <cmath>

namespace cqkv::eval {

void RunningMean::add(double value) {
  count_++;
  const double deviation = value - mean_;
  mean_ += deviation / static_cast<double>(count_);
  sum_squares_ += deviation * (value - mean_);
}

double RunningMean::standard_error() const {
  if (count_ < 2) {
    return 0;
  }
  const auto n = static_cast<double>(count_);
  return std::sqrt(sum_squares_ / (n - 1) / n);
}

double quantile(std::vector<float>& values, double fraction) {
  if (values.empty()) {
    return 0;
  }
  const double place = fraction * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::ptrdiff_t>(place);
  std::nth_element(values.begin(), values.begin() + low, values.end());
  const double below = values[static_cast<std::size_t>(low)];
  if (values.begin() + low + 1 == values.end()) {
    return below;
  }
  const double above = *std::min_element(values.begin() + low + 1, values.end());
  return below + (place - static_cast<double>(low)) * (above - below);
}

void PairStats::add(const LogitComparison& token) {
  nll_base_.add(token.nll_base);
  nll_other_.add(token.nll_other);
  difference_.add(token.nll_other - token.nll_base);
  chunk_difference_.add(token.nll_other - token.nll_base);
  divergence_.add(token.kl_divergence);
  n_same_top_ += token.same_top ? 1 : 0;
  divergences_.push_back(static_cast<float>(token.kl_divergence));
}

void PairStats::end_chunk() {
  if (chunk_difference_.count() > 0) {
    chunk_differences_.push_back(chunk_difference_.mean());
  }
  chunk_difference_ = {};
}

PairSummary PairStats::summary() const {
  PairSummary result;
  result.n_scored = difference_.count();
  if (result.n_scored == 0) {
    return result;
  }
  result.ppl_base = std::exp(nll_base_.mean());
  result.ppl_base_se = result.ppl_base * nll_base_.standard_error();
  result.ppl = std::exp(nll_other_.mean());
  result.ppl_se = result.ppl * nll_other_.standard_error();
  result.ratio = std::exp(difference_.mean());
  result.ratio_se = result.ratio * difference_.standard_error();
  RunningMean chunks;
  for (const double difference : chunk_differences_) {
    chunks.add(difference);
    result.chunk_ratios.push_back(std::exp(difference));
  }
  result.ratio_se_chunks = result.ratio * chunks.standard_error();
  result.kld_mean = divergence_.mean();
  result.kld_se = divergence_.standard_error();
  std::vector<float> divergences = divergences_;
  result.kld_median = quantile(divergences, 0.5);
  result.kld_p99 = quantile(divergences, 0.99);
  result.kld_p999 = quantile(divergences, 0.999);
  const auto n = static_cast<double>(result.n_scored);
  result.top1 = static_cast<double>(n_same_top_) / n;
  result.top1_se = n < 2 ? 0 : std::sqrt(result.top1 * (1 - result.top1) / (n - 1));
  return result;
}

}  // namespace cqkv::eval
