// See bench_check.h.
#include "bench_check.h"

#include <cmath>
#include <string>

#include "command.h"

namespace cqkv::app {
namespace {

// With bytes three roundings add up: of values and of keys, about 0.008 of the size of a row each,
// by steps of a channel's largest centroid / 127 (of normal centroids 3 to 4 deviations, and a
// step rounds by 0.29 of itself), and of probabilities, by steps of the largest of a block / 127
// (with scores of deviation 1 that is about a seventh of a probability's own size times as much;
// errors of many cells cancel). The worst rows of many shapes are off by 0.008 to 0.015; twice
// that is allowed. Without bytes: the order of sums alone.
constexpr double kByteTolerance = 0.03;
constexpr double kFloatTolerance = 1e-3;

double row_difference(const float* a, const float* b, std::size_t n) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < n; i++) {
    const double want = b[i];
    difference += (a[i] - want) * (a[i] - want);
    norm += want * want;
  }
  return std::sqrt(difference / norm);
}

double largest_difference(const float* a, const std::vector<float>& b, std::size_t head_dim) {
  double largest = 0;
  for (std::size_t i = 0; i < b.size(); i += head_dim) {
    const double difference = row_difference(a + i, b.data() + i, head_dim);
    largest = difference <= largest ? largest : difference;  // keeps a NaN
  }
  return largest;
}

Status check_one(const BenchRow& row, double difference, const char* other) {
  const double tolerance = row.path == "floats" ? kFloatTolerance : kByteTolerance;
  if (difference <= tolerance) {
    return {};
  }
  return {StatusCode::kMismatch,
          row.type + ": got a result that differs from " + other +
              format(" by %.5f of its size, want at most %g", difference, tolerance)};
}

}  // namespace

Result<BenchReference> BenchReference::compute(const BenchShape& shape, const BenchInputs& inputs,
                                               const BenchCodes& codes) {
  CodedAttention floats(shape, inputs, codes, /*bytes=*/false);
  CQKV_RETURN_IF_ERROR(floats.run());
  auto ggml = GgmlAttention::create(shape, inputs, "f32");
  if (!ggml.ok()) {
    return ggml.status();
  }
  (*ggml)->fill(codes);
  (*ggml)->set_n_threads(1);
  CQKV_RETURN_IF_ERROR((*ggml)->run());
  BenchReference reference;
  reference.head_dim_ = static_cast<std::size_t>(shape.head_dim);
  reference.floats_.assign(floats.out(), floats.out() + shape.query_floats());
  reference.ggml_.assign((*ggml)->out(), (*ggml)->out() + shape.query_floats());
  return reference;
}

BenchDifferences BenchReference::compare(const float* out, bool coded) const {
  BenchDifferences differences;
  if (coded) {
    differences.from_floats = largest_difference(out, floats_, head_dim_);
  }
  differences.from_ggml_f32 = largest_difference(out, ggml_, head_dim_);
  return differences;
}

Status check_differences(const BenchRow& row) {
  if (!row.differences || !row.differences->from_floats) {
    return {};
  }
  CQKV_RETURN_IF_ERROR(check_one(row, *row.differences->from_floats, "our own in floats"));
  return check_one(row, row.differences->from_ggml_f32, "ggml's on f32");
}

}  // namespace cqkv::app
