// Weighted k-means: preparation of the points, k-means++ start, Lloyd iterations with
// bounds. The loops over points are in kmeans_kernels-inl.h.
#include "codebook/kmeans.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "codebook/kmeans_kernels.h"
#include "core/rng.h"
#include "core/round_up.h"

namespace cqkv {
namespace {

using kmeans::kLanes;

constexpr int kMaxDim = 64;
constexpr int kMaxCentroids = 4096;
// Below this share of the spread the error is rounding: the fit is perfect.
constexpr double kPerfect = 1e-13;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Kernels exist for these widths; points are padded with zero channels, which change
// no distance.
int padded_dim(int dim) {
  int padded = 1;
  while (padded < dim) {
    padded *= 2;
  }
  return padded;
}

Status check(const KmeansProblem& problem, const KmeansOptions& options) {
  const auto bad = [](const std::string& what, auto got, const std::string& want) {
    return invalid_argument("k-means: got " + std::to_string(got) + " " + what + ", want " + want);
  };
  if (problem.dim < 1 || problem.dim > kMaxDim) {
    return bad("channels", problem.dim, "1 to 64");
  }
  if (problem.n_centroids < 1 || problem.n_centroids > kMaxCentroids) {
    return bad("centroids", problem.n_centroids, "1 to 4096");
  }
  if (problem.n_points == 0 || problem.n_points > std::numeric_limits<std::uint32_t>::max()) {
    return bad("points", problem.n_points, "1 to 2^32 - 1");
  }
  if (options.max_iterations < 0) {
    return bad("iterations", options.max_iterations, "0 or more");
  }
  for (std::size_t p = 0; p < problem.n_points; p++) {
    for (int j = 0; j < problem.dim; j++) {
      const float value = problem.points[p * problem.point_stride + j];
      if (!std::isfinite(value)) {
        return invalid_argument("k-means: point " + std::to_string(p) + ", channel " +
                                std::to_string(j) + " is " + std::to_string(value) +
                                ", want a finite number");
      }
    }
    if (problem.weights != nullptr) {
      const float weight = problem.weights[p * problem.weight_stride];
      if (!std::isfinite(weight) || weight < 0) {
        return invalid_argument("k-means: weight " + std::to_string(p) + " is " +
                                std::to_string(weight) + ", want a finite number >= 0");
      }
    }
  }
  return {};
}

}  // namespace

class KmeansSolver::Impl {
 public:
  Result<KmeansResult> solve(const KmeansProblem& problem, const KmeansOptions& options);

 private:
  void prepare(const KmeansProblem& problem, KmeansResult& result);
  void gather(const KmeansProblem& problem);
  void lay_out_centroids();
  void start(Rng& rng, KmeansResult& result);
  std::size_t draw(Rng& rng, double total) const;
  void transpose_blocks();
  void group_centroids();
  void split(std::size_t first_group, std::size_t n_groups);
  int widest_channel(const std::uint32_t* first, std::size_t n) const;
  void reset_bounds();
  void fill_tables();
  void measure_between();
  std::size_t assign(bool first);
  kmeans::AssignArgs assign_args();
  double update();
  int fill_empty();
  void set_travel(const std::vector<float>& old);
  void finish(const KmeansProblem& problem, KmeansResult& result);
  Status iterate(const KmeansOptions& options, KmeansResult& result);

  double original_weight(const KmeansProblem& problem, std::size_t i) const {
    return uniform_ ? 1.0
                    : static_cast<double>(problem.weights[original_[i] * problem.weight_stride]);
  }

  float* centroid(std::size_t c) { return centroids_.data() + c * dim_; }

  const kmeans::Kernels* kernels_ = nullptr;

  // The problem: points kept, padded and normalised.
  std::size_t n_ = 0;
  std::size_t n_blocks_ = 0;
  int dim_ = 0;
  std::size_t k_ = 0;
  bool uniform_ = false;
  double mean_weight_ = 1;
  double scale_ = 1;  // points_ = (given - mean_) / scale_
  double spread_ = 0;
  std::array<double, kMaxDim> mean_{};
  std::vector<std::uint32_t> original_;  // [n]
  std::vector<float> points_;            // [n_blocks, dim, lane] for the start, then [n, dim]
  std::vector<float> weights_;           // [n_blocks * lane]

  // The start.
  std::vector<float> nearest_;      // [n_blocks * lane]
  std::vector<float> owner_;        // [n_blocks * lane]
  std::vector<double> chunk_sums_;  // [chunks]

  // Centroids; positions from k_ on are padding.
  std::size_t n_groups_ = 0;
  std::size_t group_size_ = 0;
  std::size_t row_groups_ = 0;
  std::vector<float> centroids_;       // [n_groups * group_size, dim]
  std::vector<float> tables_;          // [n_groups * group_size / lane, dim, lane]
  std::vector<std::uint32_t> order_;   // [k]
  std::vector<double> sums_;           // [k, dim]
  std::vector<double> mass_;           // [k]
  std::vector<std::uint32_t> counts_;  // [k]

  // Bounds.
  double travel_ = 0;
  std::vector<double> travel_sums_;     // [n_groups * group_size]
  std::vector<double> group_sums_;      // [n_groups]
  std::vector<float> centroid_travel_;  // [n_groups * group_size]
  std::vector<float> group_travel_;     // [row_groups]
  std::vector<std::uint16_t> assignment_;
  std::vector<float> upper_;
  std::vector<float> lower_;
  std::vector<float> group_lower_;  // [n, row_groups]
  std::vector<float> between_;      // [k, row_groups]
};

// Keeps the points of positive weight; finds their mean, scale and mean weight.
void KmeansSolver::Impl::prepare(const KmeansProblem& problem, KmeansResult& result) {
  const auto weight = [&](std::size_t p) {
    return problem.weights == nullptr ? 1.0F : problem.weights[p * problem.weight_stride];
  };
  original_.clear();
  uniform_ = problem.weights == nullptr;
  for (std::size_t p = 0; p < problem.n_points; p++) {
    if (weight(p) > 0) {
      original_.push_back(static_cast<std::uint32_t>(p));
    }
  }
  if (original_.empty()) {
    uniform_ = true;
    result.uniform_fallback = true;
    original_.resize(problem.n_points);
    std::iota(original_.begin(), original_.end(), 0U);
  }
  n_ = original_.size();
  dim_ = padded_dim(problem.dim);
  k_ = static_cast<std::size_t>(problem.n_centroids);
  kernels_ = kernels_ != nullptr ? kernels_ : &kmeans::active_kernels();
  result.n_points = n_;

  double total = 0;
  mean_.fill(0);
  std::array<float, kMaxDim> low{};
  std::array<float, kMaxDim> high{};
  low.fill(kInfinity);
  high.fill(-kInfinity);
  for (std::size_t i = 0; i < n_; i++) {
    const double w = original_weight(problem, i);
    const float* x = problem.points + original_[i] * problem.point_stride;
    total += w;
    for (int j = 0; j < problem.dim; j++) {
      mean_[j] += w * static_cast<double>(x[j]);
      low[j] = std::min(low[j], x[j]);
      high[j] = std::max(high[j], x[j]);
    }
  }
  double largest = 0;
  for (int j = 0; j < problem.dim; j++) {
    mean_[j] /= total;
    largest = std::max(
        {largest, mean_[j] - static_cast<double>(low[j]), static_cast<double>(high[j]) - mean_[j]});
  }
  mean_weight_ = total / static_cast<double>(n_);
  scale_ = largest > 0 ? std::exp2(std::ceil(std::log2(largest))) : 1;
}

// Fills points_ (lanes innermost) and weights_; computes the spread.
void KmeansSolver::Impl::gather(const KmeansProblem& problem) {
  n_blocks_ = round_up(n_, kLanes) / kLanes;
  points_.assign(n_blocks_ * kLanes * dim_, 0.0F);
  weights_.assign(n_blocks_ * kLanes, 0.0F);
  spread_ = 0;
  for (std::size_t i = 0; i < n_; i++) {
    const float* x = problem.points + original_[i] * problem.point_stride;
    float* out = points_.data() + i / kLanes * kLanes * dim_ + i % kLanes;
    const auto w = static_cast<float>(original_weight(problem, i) / mean_weight_);
    double square = 0;
    for (int j = 0; j < problem.dim; j++) {
      const auto value = static_cast<float>((static_cast<double>(x[j]) - mean_[j]) / scale_);
      out[j * kLanes] = value;
      square += static_cast<double>(value) * static_cast<double>(value);
    }
    weights_[i] = w;
    spread_ += static_cast<double>(w) * square;
  }
}

void KmeansSolver::Impl::lay_out_centroids() {
  group_size_ = kLanes;
  while (k_ > group_size_ * group_size_ * 2) {
    group_size_ *= 2;
  }
  n_groups_ = round_up(k_, group_size_) / group_size_;
  row_groups_ = round_up(n_groups_, kLanes);
  const std::size_t padded = n_groups_ * group_size_;
  centroids_.assign(padded * dim_, kInfinity);
  tables_.assign(padded * dim_, kInfinity);
  sums_.resize(k_ * dim_);
  mass_.resize(k_);
  counts_.resize(k_);
}

// A point with probability weight * nearest / total.
std::size_t KmeansSolver::Impl::draw(Rng& rng, double total) const {
  double left = rng.uniform() * total;
  std::size_t chunk = 0;
  std::size_t last = 0;  // Rounding may lead past the end: the last chunk with any weight.
  for (; chunk < chunk_sums_.size(); chunk++) {
    if (chunk_sums_[chunk] > 0) {
      last = chunk;
      if (left < chunk_sums_[chunk]) {
        break;
      }
      left -= chunk_sums_[chunk];
    }
  }
  const std::size_t first = last * kmeans::kChunkBlocks * kLanes;
  const std::size_t end = std::min(n_, first + kmeans::kChunkBlocks * kLanes);
  std::size_t drawn = first;
  for (std::size_t i = first; i < end; i++) {
    const double share = static_cast<double>(weights_[i]) * static_cast<double>(nearest_[i]);
    if (share > 0) {
      drawn = i;
      if (left < share) {
        break;
      }
      left -= share;
    }
  }
  return drawn;
}

// Weighted k-means++: each centroid is a point drawn with probability proportional to
// its weight times its squared distance to the centroids drawn before.
void KmeansSolver::Impl::start(Rng& rng, KmeansResult& result) {
  const std::size_t n_chunks = round_up(n_blocks_, kmeans::kChunkBlocks) / kmeans::kChunkBlocks;
  nearest_.assign(n_blocks_ * kLanes, 1.0F);
  owner_.assign(n_blocks_ * kLanes, 0.0F);
  chunk_sums_.assign(n_chunks, 0.0);
  for (std::size_t i = 0; i < n_; i++) {
    chunk_sums_[i / (kmeans::kChunkBlocks * kLanes)] += static_cast<double>(weights_[i]);
  }
  double total = std::accumulate(chunk_sums_.begin(), chunk_sums_.end(), 0.0);
  for (std::size_t c = 0; c < k_; c++) {
    if (!(total > 0)) {
      std::copy_n(centroid(0), dim_, centroid(c));  // Fewer distinct points than centroids.
      continue;
    }
    const std::size_t i = draw(rng, total);
    for (int j = 0; j < dim_; j++) {
      centroid(c)[j] = points_[i / kLanes * kLanes * dim_ + j * kLanes + i % kLanes];
    }
    if (c == 0) {
      nearest_.assign(nearest_.size(), std::numeric_limits<float>::max());
    }
    kernels_->seed(dim_,
                   {points_.data(), weights_.data(), n_blocks_, centroid(c), static_cast<float>(c),
                    owner_.data(), nearest_.data(), chunk_sums_.data()});
    total = std::accumulate(chunk_sums_.begin(), chunk_sums_.end(), 0.0);
  }
  result.start_objective = total;
  assignment_.resize(n_);
  for (std::size_t i = 0; i < n_; i++) {
    assignment_[i] = static_cast<std::uint16_t>(owner_[i]);
  }
}

// From lanes innermost to channels innermost, block by block in place.
void KmeansSolver::Impl::transpose_blocks() {
  std::array<float, static_cast<std::size_t>(kMaxDim) * kLanes> block{};
  for (std::size_t b = 0; b < n_blocks_; b++) {
    float* at = points_.data() + b * kLanes * dim_;
    std::copy_n(at, kLanes * dim_, block.begin());
    for (int l = 0; l < kLanes; l++) {
      for (int j = 0; j < dim_; j++) {
        at[l * dim_ + j] = block[static_cast<std::size_t>(j) * kLanes + l];
      }
    }
  }
}

int KmeansSolver::Impl::widest_channel(const std::uint32_t* first, std::size_t n) const {
  int widest = 0;
  double most = -1;
  for (int j = 0; j < dim_; j++) {
    double sum = 0;
    double squares = 0;
    for (std::size_t i = 0; i < n; i++) {
      const auto value = static_cast<double>(centroids_[first[i] * dim_ + j]);
      sum += value;
      squares += value * value;
    }
    const double variance = squares - sum * sum / static_cast<double>(n);
    if (variance > most) {
      most = variance;
      widest = j;
    }
  }
  return widest;
}

// Sorts order_ so that each half of the groups holds neighbours, recursively.
void KmeansSolver::Impl::split(std::size_t first_group, std::size_t n_groups) {
  if (n_groups < 2) {
    return;
  }
  const std::size_t first = first_group * group_size_;
  const std::size_t end = std::min(k_, (first_group + n_groups) * group_size_);
  const int channel = widest_channel(order_.data() + first, end - first);
  const auto value = [&](std::uint32_t c) { return centroids_[c * dim_ + channel]; };
  std::sort(order_.begin() + static_cast<std::ptrdiff_t>(first),
            order_.begin() + static_cast<std::ptrdiff_t>(end),
            [&](std::uint32_t a, std::uint32_t b) {
              return value(a) < value(b) || (value(a) == value(b) && a < b);
            });
  split(first_group, n_groups / 2);
  split(first_group + n_groups / 2, n_groups - n_groups / 2);
}

// Puts centroids that are near each other into one group, so that a point can rule out
// most groups as a whole. Bounds start anew.
void KmeansSolver::Impl::group_centroids() {
  order_.resize(k_);
  std::iota(order_.begin(), order_.end(), 0U);
  split(0, n_groups_);
  std::vector<float> sorted(centroids_.size(), kInfinity);
  for (std::size_t c = 0; c < k_; c++) {
    std::copy_n(centroid(order_[c]), dim_, sorted.data() + c * dim_);
  }
  centroids_ = std::move(sorted);
  std::vector<std::uint16_t> position(k_);
  for (std::size_t c = 0; c < k_; c++) {
    position[order_[c]] = static_cast<std::uint16_t>(c);
  }
  for (std::uint16_t& a : assignment_) {
    a = position[a];
  }
  reset_bounds();
}

void KmeansSolver::Impl::reset_bounds() {
  travel_ = 0;
  travel_sums_.assign(n_groups_ * group_size_, 0.0);
  group_sums_.assign(n_groups_, 0.0);
  centroid_travel_.assign(n_groups_ * group_size_, 0.0F);
  group_travel_.assign(row_groups_, 0.0F);
  upper_.assign(n_, kInfinity);
  lower_.assign(n_, -kInfinity);
  group_lower_.resize(n_ * row_groups_);
}

void KmeansSolver::Impl::fill_tables() {
  for (std::size_t c = 0; c < k_; c++) {
    for (int j = 0; j < dim_; j++) {
      tables_[c / kLanes * kLanes * dim_ + j * kLanes + c % kLanes] = centroid(c)[j];
    }
  }
}

// Distance of each centroid to the others of each group, from the assignment step too:
// the centroids are the points, each assigned to itself, nothing known of the groups.
void KmeansSolver::Impl::measure_between() {
  std::vector<std::uint16_t> self(k_);
  std::iota(self.begin(), self.end(), std::uint16_t{0});
  std::vector<float> upper(k_, kInfinity);
  std::vector<float> lower(k_, -kInfinity);
  between_.assign(k_ * row_groups_, kInfinity);
  for (std::size_t c = 0; c < k_; c++) {
    std::fill_n(between_.data() + c * row_groups_, n_groups_, -kInfinity);
  }
  kmeans::AssignArgs args = assign_args();
  args.points = centroids_.data();
  args.n_points = k_;
  args.assignment = self.data();
  args.upper = upper.data();
  args.lower = lower.data();
  args.group_lower = between_.data();
  kernels_->assign(dim_, args);
}

std::size_t KmeansSolver::Impl::assign(bool first) {
  fill_tables();
  if (first) {
    measure_between();
  }
  kmeans::AssignArgs args = assign_args();
  args.between = first ? between_.data() : nullptr;
  return kernels_->assign(dim_, args);
}

kmeans::AssignArgs KmeansSolver::Impl::assign_args() {
  kmeans::AssignArgs args{};
  args.points = points_.data();
  args.n_points = n_;
  args.centroids = centroids_.data();
  args.tables = tables_.data();
  args.group_size = static_cast<int>(group_size_);
  args.row_groups = static_cast<int>(row_groups_);
  args.centroid_travel = centroid_travel_.data();
  args.group_travel = group_travel_.data();
  args.travel = static_cast<float>(travel_);
  args.assignment = assignment_.data();
  args.upper = upper_.data();
  args.lower = lower_.data();
  args.group_lower = group_lower_.data();
  return args;
}

// Moves centroids to the means of their points; returns the objective then, by
// Huygens' theorem: sum w |x - mean|^2 = sum w |x|^2 - W |mean|^2.
double KmeansSolver::Impl::update() {
  std::fill(sums_.begin(), sums_.end(), 0.0);
  std::fill(mass_.begin(), mass_.end(), 0.0);
  std::fill(counts_.begin(), counts_.end(), 0U);
  kernels_->sum(dim_, {points_.data(), weights_.data(), assignment_.data(), n_, sums_.data(),
                       mass_.data(), counts_.data()});
  double explained = 0;
  for (std::size_t c = 0; c < k_; c++) {
    if (mass_[c] > 0) {
      for (int j = 0; j < dim_; j++) {
        const double sum = sums_[c * dim_ + j];
        explained += sum * sum / mass_[c];
        centroid(c)[j] = static_cast<float>(sum / mass_[c]);
      }
    }
  }
  return std::max(0.0, spread_ - explained);
}

// Moves centroids without points to the points with the largest weighted errors.
int KmeansSolver::Impl::fill_empty() {
  std::vector<std::size_t> empty;
  for (std::size_t c = 0; c < k_; c++) {
    if (counts_[c] == 0) {
      empty.push_back(c);
    }
  }
  if (empty.empty()) {
    return 0;
  }
  std::vector<std::pair<double, std::size_t>> errors(n_);
  for (std::size_t i = 0; i < n_; i++) {
    double square = 0;
    for (int j = 0; j < dim_; j++) {
      const double difference = static_cast<double>(points_[i * dim_ + j]) -
                                static_cast<double>(centroid(assignment_[i])[j]);
      square += difference * difference;
    }
    errors[i] = {-static_cast<double>(weights_[i]) * square, i};
  }
  const std::size_t n = std::min(empty.size(), n_);
  std::partial_sort(errors.begin(), errors.begin() + static_cast<std::ptrdiff_t>(n), errors.end());
  int moved = 0;
  for (std::size_t e = 0; e < n && -errors[e].first > kPerfect * spread_; e++) {
    std::copy_n(points_.data() + errors[e].second * dim_, dim_, centroid(empty[e]));
    moved++;
  }
  return moved;
}

// Adds what the centroids moved since `old` to the travel that bounds are read with.
void KmeansSolver::Impl::set_travel(const std::vector<float>& old) {
  double most = 0;
  for (std::size_t g = 0; g < n_groups_; g++) {
    double group_most = 0;
    for (std::size_t c = g * group_size_; c < std::min(k_, (g + 1) * group_size_); c++) {
      double square = 0;
      for (int j = 0; j < dim_; j++) {
        const double step =
            static_cast<double>(centroid(c)[j]) - static_cast<double>(old[c * dim_ + j]);
        square += step * step;
      }
      travel_sums_[c] += std::sqrt(square);
      centroid_travel_[c] = static_cast<float>(travel_sums_[c]);
      group_most = std::max(group_most, std::sqrt(square));
    }
    group_sums_[g] += group_most;
    group_travel_[g] = static_cast<float>(group_sums_[g]);
    most = std::max(most, group_most);
  }
  travel_ += most;
}

Status KmeansSolver::Impl::iterate(const KmeansOptions& options, KmeansResult& result) {
  std::vector<float> old;
  double objective = result.start_objective;
  while (result.iterations < options.max_iterations) {
    if (options.cancelled != nullptr && options.cancelled->load(std::memory_order_relaxed)) {
      return {StatusCode::kCancelled, "k-means: cancelled"};
    }
    // The start knows the nearest centroids already. Bounds begin with the first means:
    // those are far from the start.
    std::size_t n_changed = n_;
    if (result.iterations == 1) {
      group_centroids();
      n_changed = assign(true);
    } else if (result.iterations > 1) {
      set_travel(old);
      n_changed = assign(false);
    }
    old = centroids_;
    const double lower = update();
    const int n_refilled = fill_empty();
    result.n_refilled += n_refilled;
    result.iterations++;
    // Rounding of the Huygens sum must not show as a rise.
    const double gain = objective - std::min(objective, lower);
    objective -= gain;
    result.history.push_back(objective);
    const bool settled =
        n_changed == 0 || gain <= options.tolerance * objective || objective <= kPerfect * spread_;
    if (settled && n_refilled == 0) {
      result.converged = true;
      break;
    }
  }
  return {};
}

// Final means and errors from the points as given, so that neither centring nor scaling
// leaves a trace in them.
void KmeansSolver::Impl::finish(const KmeansProblem& problem, KmeansResult& result) {
  const auto dim = static_cast<std::size_t>(problem.dim);
  result.centroids.resize(k_ * dim);
  for (std::size_t c = 0; c < k_; c++) {
    for (std::size_t j = 0; j < dim; j++) {
      result.centroids[c * dim + j] =
          static_cast<float>(static_cast<double>(centroid(c)[j]) * scale_ + mean_[j]);
    }
  }
  const double unit = scale_ * scale_ * mean_weight_;
  result.start_objective *= unit;
  result.spread = spread_ * unit;
  for (double& value : result.history) {
    value *= unit;
  }
  if (result.iterations == 0) {
    result.objective = result.start_objective;
    return;
  }
  std::vector<double> sums(k_ * dim, 0.0);
  std::vector<double> mass(k_, 0.0);
  for (std::size_t i = 0; i < n_; i++) {
    const double w = original_weight(problem, i);
    const float* x = problem.points + original_[i] * problem.point_stride;
    for (std::size_t j = 0; j < dim; j++) {
      sums[assignment_[i] * dim + j] += w * static_cast<double>(x[j]);
    }
    mass[assignment_[i]] += w;
  }
  for (std::size_t c = 0; c < k_; c++) {
    for (std::size_t j = 0; mass[c] > 0 && j < dim; j++) {
      result.centroids[c * dim + j] = static_cast<float>(sums[c * dim + j] / mass[c]);
    }
  }
  for (std::size_t i = 0; i < n_; i++) {
    const float* x = problem.points + original_[i] * problem.point_stride;
    const float* c = result.centroids.data() + assignment_[i] * dim;
    double square = 0;
    for (std::size_t j = 0; j < dim; j++) {
      const double difference = static_cast<double>(x[j]) - static_cast<double>(c[j]);
      square += difference * difference;
    }
    result.objective += original_weight(problem, i) * square;
  }
}

Result<KmeansResult> KmeansSolver::Impl::solve(const KmeansProblem& problem,
                                               const KmeansOptions& options) {
  CQKV_RETURN_IF_ERROR(check(problem, options));
  KmeansResult result;
  kernels_ = options.kernels;
  prepare(problem, result);
  gather(problem);
  lay_out_centroids();
  Rng rng(options.seed, options.stream);
  start(rng, result);
  transpose_blocks();
  CQKV_RETURN_IF_ERROR(iterate(options, result));
  finish(problem, result);
  return result;
}

KmeansSolver::KmeansSolver() : impl_(std::make_unique<Impl>()) {
}

KmeansSolver::~KmeansSolver() = default;

KmeansSolver::KmeansSolver(KmeansSolver&&) noexcept = default;

KmeansSolver& KmeansSolver::operator=(KmeansSolver&&) noexcept = default;

Result<KmeansResult> KmeansSolver::solve(const KmeansProblem& problem,
                                         const KmeansOptions& options) {
  return impl_->solve(problem, options);
}

}  // namespace cqkv
