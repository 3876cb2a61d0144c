// Statistics over scored tokens: of one context (perplexity) and of a pair (ratio of
// perplexities, KL divergence, agreement). The formulas are in docs/commands.md.
#pragma once

#include <cstddef>
#include <vector>

#include "eval/logit_compare.h"

namespace cqkv::eval {

/// Mean and standard error of a stream of numbers (Welford's update).
class RunningMean {
 public:
  void add(double value);

  std::size_t count() const { return count_; }

  double mean() const { return mean_; }

  /// Sample standard deviation / sqrt(count); 0 below two values. Values are taken as
  /// independent, as llama-perplexity does; tokens of one text are not quite.
  double standard_error() const;

 private:
  std::size_t count_ = 0;
  double mean_ = 0;
  double sum_squares_ = 0;  // of deviations
};

/// The value below which a share of `fraction` lies, with linear interpolation between
/// the two neighbours; 0 of nothing. Reorders `values`.
double quantile(std::vector<float>& values, double fraction);

struct PairSummary {
  std::size_t n_scored = 0;
  double ppl_base = 0;
  double ppl_base_se = 0;
  double ppl = 0;
  double ppl_se = 0;
  double ratio = 0;     ///< exp(mean(nll_other - nll_base))
  double ratio_se = 0;  ///< ratio * standard error of the differences: paired.
  /// exp(mean(nll_other - nll_base)) of each chunk. Chunks of a text differ by more than
  /// ratio_se says, which takes tokens as independent.
  std::vector<double> chunk_ratios;
  /// ratio * standard error of the chunks' log ratios; 0 below two chunks.
  double ratio_se_chunks = 0;
  double kld_mean = 0;
  double kld_se = 0;
  double kld_median = 0;
  double kld_p99 = 0;
  double kld_p999 = 0;  ///< 99.9 %
  double top1 = 0;      ///< Share of tokens with the same most probable continuation.
  double top1_se = 0;
};

class PairStats {
 public:
  void add(const LogitComparison& token);

  /// The tokens since the last call were one chunk.
  void end_chunk();

  PairSummary summary() const;

 private:
  RunningMean nll_base_;
  RunningMean nll_other_;
  RunningMean difference_;
  RunningMean divergence_;
  RunningMean chunk_difference_;           // of the chunk being added
  std::vector<double> chunk_differences_;  // means of the finished ones
  std::size_t n_same_top_ = 0;
  std::vector<float> divergences_;
};

}  // namespace cqkv::eval
