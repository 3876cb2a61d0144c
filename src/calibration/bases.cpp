// See bases.h.
#include "calibration/bases.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <utility>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include "core/half.h"

namespace cqkv {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Added to metrics, as a share of their mean diagonal: no error is free.
constexpr double kRidge = 0.02;
// Added to covariances, for channels that hardly vary.
constexpr double kLeastVariance = 1e-6;
// Rows that are multiplied together.
constexpr std::size_t kBlockRows = 256;
constexpr int kMaxSweeps = 8;

std::vector<double> to_vector(const Matrix& matrix) {
  return {matrix.data(), matrix.data() + matrix.size()};
}

Eigen::Map<const Matrix> to_matrix(const std::vector<double>& numbers) {
  const auto n =
      static_cast<Eigen::Index>(std::lround(std::sqrt(static_cast<double>(numbers.size()))));
  return {numbers.data(), n, n};
}

// M with its ridge, of mean diagonal 1.
Matrix metric_of(const GradientMoments& moments, int kv_head) {
  const std::vector<double> numbers = moments.of_head(kv_head);
  Matrix metric = to_matrix(numbers);
  const auto n = static_cast<double>(metric.rows());
  metric *= n / metric.trace();
  return (metric + kRidge * Matrix::Identity(metric.rows(), metric.rows())) / (1 + kRidge);
}

// The weighted covariance of one head's channels.
Matrix covariance_of(const BasisInput& input, int kv_head) {
  const int dim = input.shape.head_dim;
  const auto n_heads = static_cast<std::size_t>(input.shape.n_kv_heads);
  const auto n_channels = static_cast<std::size_t>(input.shape.n_channels());
  const float* rows = input.rows + static_cast<std::size_t>(kv_head) * dim;
  const auto weight = [&](std::size_t t) {
    return static_cast<double>(input.weights[t * n_heads + kv_head]);
  };
  double mass = 0;
  for (std::size_t t = 0; t < input.n_rows; t++) {
    mass += weight(t);
  }
  const bool uniform = !(mass > 0);
  mass = uniform ? static_cast<double>(input.n_rows) : mass;
  Eigen::VectorXd mean = Eigen::VectorXd::Zero(dim);
  Matrix squares = Matrix::Zero(dim, dim);
  FloatMatrix block(kBlockRows, dim);
  // About the first row, so that sums in f32 do not lose the spread in the mean.
  const Eigen::Map<const Eigen::RowVectorXf> origin(rows, dim);
  for (std::size_t first = 0; first < input.n_rows; first += kBlockRows) {
    const std::size_t n = std::min(kBlockRows, input.n_rows - first);
    for (std::size_t i = 0; i < n; i++) {
      const double share = (uniform ? 1.0 : weight(first + i)) / mass;
      const Eigen::Map<const Eigen::RowVectorXf> row(rows + (first + i) * n_channels, dim);
      const Eigen::RowVectorXf offset = row - origin;
      mean += share * offset.transpose().cast<double>();
      block.row(static_cast<Eigen::Index>(i)) = offset * static_cast<float>(std::sqrt(share));
    }
    const auto used = block.topRows(static_cast<Eigen::Index>(n));
    squares += FloatMatrix(used.transpose() * used).cast<double>();
  }
  Matrix covariance = squares - mean * mean.transpose();
  const double floor = kLeastVariance * covariance.trace() / dim + 1e-30;
  return covariance + floor * Matrix::Identity(dim, dim);
}

// M averaged over the rotations of each pair of channels (first, first + partner): what a query
// reads of a pair turns with the distance.
Matrix pair_average(const Matrix& metric, const std::vector<int>& firsts, int partner) {
  Matrix result = metric;
  for (const int i : firsts) {
    for (const int j : firsts) {
      const double same = (metric(i, j) + metric(i + partner, j + partner)) / 2;
      const double turned = (metric(i, j + partner) - metric(i + partner, j)) / 2;
      result(i, j) = result(i + partner, j + partner) = same;
      result(i, j + partner) = turned;
      result(i + partner, j) = -turned;
    }
  }
  return result;
}

// The channels of some pairs: both of the first, both of the second and so on.
std::vector<int> channels_of(const int* firsts, int n_pairs, int partner) {
  std::vector<int> channels;
  for (int i = 0; i < n_pairs; i++) {
    channels.push_back(firsts[i]);
    channels.push_back(firsts[i] + partner);
  }
  return channels;
}

Matrix block_of(const Matrix& matrix, const std::vector<int>& channels) {
  return matrix(channels, channels);
}

double log_det(const Matrix& matrix) {
  const Eigen::LLT<Matrix> llt(matrix);
  return 2 * Eigen::VectorXd(Matrix(llt.matrixL()).diagonal()).array().log().sum();
}

// Exchanges pairs between the groups of one head as long as that lowers the sum in KeyBases.
class PairSearch {
 public:
  PairSearch(const Matrix& metric, const Matrix& covariance, int partner, int group_dim)
      : metric_(metric), covariance_(covariance), partner_(partner), group_dim_(group_dim) {}

  void run(std::vector<int>& firsts) const {
    const int n_pairs = group_dim_ / 2;
    const int n_groups = static_cast<int>(firsts.size()) / n_pairs;
    std::vector<double> costs(static_cast<std::size_t>(n_groups));
    for (int g = 0; g < n_groups; g++) {
      costs[g] = cost(&firsts[g * n_pairs]);
    }
    bool better = true;
    for (int sweep = 0; sweep < kMaxSweeps && better; sweep++) {
      better = false;
      for (int i = 0; i < static_cast<int>(firsts.size()); i++) {
        for (int j = (i / n_pairs + 1) * n_pairs; j < static_cast<int>(firsts.size()); j++) {
          better = exchange(firsts, i, j, costs) || better;
        }
      }
    }
  }

 private:
  double cost(const int* firsts) const {
    const std::vector<int> channels = channels_of(firsts, group_dim_ / 2, partner_);
    return std::exp(
        (log_det(block_of(metric_, channels)) + log_det(block_of(covariance_, channels))) /
        group_dim_);
  }

  bool exchange(std::vector<int>& firsts, int i, int j, std::vector<double>& costs) const {
    const int n_pairs = group_dim_ / 2;
    const int a = i / n_pairs;
    const int b = j / n_pairs;
    std::swap(firsts[i], firsts[j]);
    const double of_a = cost(&firsts[a * n_pairs]);
    const double of_b = cost(&firsts[b * n_pairs]);
    if (of_a + of_b < (costs[a] + costs[b]) * (1 - 1e-6)) {
      costs[a] = of_a;
      costs[b] = of_b;
      return true;
    }
    std::swap(firsts[i], firsts[j]);
    return false;
  }

  const Matrix& metric_;
  const Matrix& covariance_;
  int partner_;
  int group_dim_;
};

// task(head) of every head. A lack of memory is thrown here, since tasks must not throw.
template <typename Task>
void for_heads(int n_heads, ParallelFor& parallel, const Task& task) {
  std::atomic<bool> failed{false};
  parallel.run(n_heads, [&](int head, int /*thread*/) {
    try {
      task(head);
    } catch (const std::bad_alloc&) {
      failed.store(true);
    }
  });
  if (failed.load()) {
    throw std::bad_alloc();
  }
}

// Rows of length 1 in the directions of the gradients of one head; without those that are 0.
FloatMatrix directions(const float* gradients, std::size_t n_rows, std::size_t stride, int dim) {
  FloatMatrix block(static_cast<Eigen::Index>(n_rows), dim);
  Eigen::Index n = 0;
  for (std::size_t t = 0; t < n_rows; t++) {
    // Gradients are small: in f64 their squares do not vanish.
    const Eigen::RowVectorXd row =
        Eigen::Map<const Eigen::RowVectorXf>(gradients + t * stride, dim).cast<double>();
    if (row.norm() > 0) {
      block.row(n++) = (row / row.norm()).cast<float>();
    }
  }
  return block.topRows(n);
}

void append_halves(const Matrix& matrix, std::vector<std::uint16_t>& halves) {
  for (Eigen::Index i = 0; i < matrix.size(); i++) {
    halves.push_back(float_to_half(static_cast<float>(matrix.data()[i])));
  }
}

}  // namespace

GradientMoments::GradientMoments(KvShape shape)
    : shape_(shape),
      sums_(static_cast<std::size_t>(shape.n_channels()) * shape.head_dim),
      counts_(static_cast<std::size_t>(shape.n_kv_heads)) {
}

void GradientMoments::add(const float* gradients, std::size_t n_rows) {
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const auto n_channels = static_cast<std::size_t>(shape_.n_channels());
  for (std::size_t head = 0; head < counts_.size(); head++) {
    Eigen::Map<Matrix> sums(sums_.data() + head * dim * dim, shape_.head_dim, shape_.head_dim);
    for (std::size_t first = 0; first < n_rows; first += kBlockRows) {
      const FloatMatrix block =
          directions(gradients + first * n_channels + head * dim,
                     std::min(kBlockRows, n_rows - first), n_channels, shape_.head_dim);
      sums += FloatMatrix(block.transpose() * block).cast<double>();
      counts_[head] += static_cast<std::size_t>(block.rows());
    }
  }
}

std::vector<double> GradientMoments::of_head(int kv_head) const {
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const std::size_t count = counts_[static_cast<std::size_t>(kv_head)];
  if (count == 0) {
    return to_vector(Matrix::Identity(shape_.head_dim, shape_.head_dim) / shape_.head_dim);
  }
  const auto begin = sums_.begin() + static_cast<std::ptrdiff_t>(kv_head * dim * dim);
  std::vector<double> mean(begin, begin + static_cast<std::ptrdiff_t>(dim * dim));
  for (double& value : mean) {
    value /= static_cast<double>(count);
  }
  return mean;
}

KeyBases::KeyBases(const BasisInput& input, RopeMode mode, ParallelFor& parallel)
    : shape_(input.shape),
      metrics_(static_cast<std::size_t>(input.shape.n_kv_heads)),
      covariances_(metrics_.size()),
      pairs_(metrics_.size()),
      partner_(mode == RopeMode::kNeox ? input.shape.head_dim / 2 : 1) {
  for_heads(shape_.n_kv_heads, parallel, [&](int head) {
    metrics_[head] = to_vector(metric_of(*input.moments, head));
    covariances_[head] = to_vector(covariance_of(input, head));
    for (int i = 0; i < shape_.head_dim / 2; i++) {
      pairs_[head].push_back(mode == RopeMode::kNeox ? i : 2 * i);
    }
  });
}

Result<TensorBasis> KeyBases::next(int group_dim, ParallelFor& parallel) {
  if (group_dim > 2) {  // else there is nothing to exchange
    for_heads(shape_.n_kv_heads, parallel, [&](int head) {
      const Matrix metric = pair_average(to_matrix(metrics_[head]), pairs_[head], partner_);
      const Matrix covariance = to_matrix(covariances_[head]);
      PairSearch(metric, covariance, partner_, group_dim).run(pairs_[head]);
    });
  }
  TensorBasis::Parts parts;
  const TensorSpec spec({group_dim, 8}, shape_.n_kv_heads, shape_.head_dim);
  for (int head = 0; head < shape_.n_kv_heads; head++) {
    const Matrix metric = to_matrix(metrics_[head]);
    const std::vector<int> order = channels_of(pairs_[head].data(), shape_.head_dim / 2, partner_);
    parts.order.insert(parts.order.end(), order.begin(), order.end());
    for (auto group = order.begin(); group != order.end(); group += group_dim) {
      const Eigen::LLT<Matrix> llt(block_of(metric, {group, group + group_dim}));
      append_halves(Matrix(llt.matrixL()).transpose(), parts.metric);
    }
  }
  return TensorBasis::create(spec, std::move(parts));
}

ValueBases::ValueBases(const BasisInput& input, ParallelFor& parallel)
    : shape_(input.shape), rotations_(static_cast<std::size_t>(input.shape.n_kv_heads)) {
  for_heads(shape_.n_kv_heads, parallel, [&](int head) {
    const Eigen::LLT<Matrix> llt(metric_of(*input.moments, head));
    const Matrix root = Matrix(llt.matrixL()).transpose();
    const Eigen::SelfAdjointEigenSolver<Matrix> axes(
        Matrix(root * covariance_of(input, head) * root.transpose()));
    // Eigenvalues rise.
    const Matrix rotation = Matrix(axes.eigenvectors().transpose() * root).colwise().reverse();
    rotations_[head] = to_vector(rotation);
  });
}

Result<TensorBasis> ValueBases::of(int group_dim) const {
  TensorBasis::Parts parts;
  const int n_groups = shape_.head_dim / group_dim;
  std::vector<int> component(static_cast<std::size_t>(shape_.head_dim));  // at each place
  for (int i = 0; i < shape_.head_dim; i++) {
    const int round = i / n_groups;
    const int group = round % 2 == 0 ? i % n_groups : n_groups - 1 - i % n_groups;
    component[group * group_dim + round] = i;
  }
  for (int head = 0; head < shape_.n_kv_heads; head++) {
    append_halves(to_matrix(rotations_[head])(component, Eigen::all), parts.rotation);
  }
  return TensorBasis::create(TensorSpec({group_dim, 8}, shape_.n_kv_heads, shape_.head_dim),
                             std::move(parts));
}

}  // namespace cqkv
