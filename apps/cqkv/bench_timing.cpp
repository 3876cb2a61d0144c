// See bench_timing.h.
#include "bench_timing.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <new>
#include <string>

#include "device/omp_parallel.h"

namespace cqkv::app {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{512} << 20U;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Status take_turn(const std::function<Status()>& run, double seconds, Timings& timings) {
  CQKV_RETURN_IF_ERROR(run());
  const Stopwatch turn;
  do {
    const Stopwatch one;
    CQKV_RETURN_IF_ERROR(run());
    timings.seconds.push_back(one.seconds());
  } while (turn.seconds() < seconds);
  return {};
}

Status take_round(const std::vector<std::function<Status()>>& runs, double turn_seconds,
                  std::vector<Timings>& timings) {
  for (std::size_t i = 0; i < runs.size(); i++) {
    CQKV_RETURN_IF_ERROR(take_turn(runs[i], turn_seconds, timings[i]));
  }
  return {};
}

// Several sums, so that no addition waits for the one before.
std::uint64_t sum(const std::uint64_t* words, std::size_t n) {
  constexpr std::size_t kSums = 16;
  std::array<std::uint64_t, kSums> sums{};
  for (std::size_t i = 0; i + kSums <= n; i += kSums) {
    for (std::size_t j = 0; j < kSums; j++) {
      sums[j] += words[i + j];
    }
  }
  std::uint64_t total = 0;
  for (const std::uint64_t part : sums) {
    total += part;
  }
  return total;
}

}  // namespace

double Timings::minimum() const {
  return *std::min_element(seconds.begin(), seconds.end());
}

double Timings::median() const {
  std::vector<double> sorted = seconds;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

Result<std::vector<Timings>> time_in_turns(const std::vector<std::function<Status()>>& runs,
                                           double seconds) {
  constexpr double kRounds = 10;
  const double turn_seconds = seconds / kRounds / static_cast<double>(runs.size());
  std::vector<Timings> timings(runs.size());
  const Stopwatch all;
  for (int round = 0; round < kMinRounds || all.seconds() < seconds; round++) {
    CQKV_RETURN_IF_ERROR(take_round(runs, turn_seconds, timings));
  }
  return timings;
}

Result<BandwidthMeter> BandwidthMeter::create() {
  BandwidthMeter meter;
  try {
    meter.words_.assign(kBufferBytes / sizeof(std::uint64_t), 1);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted,
                  "no memory for the " + std::to_string(kBufferBytes >> 20U) +
                      " MiB that the speed of memory is measured on");
  }
  return meter;
}

double BandwidthMeter::bytes_per_second(int n_threads) const {
  constexpr int kPasses = 5;
  device::OmpParallelFor parallel;
  parallel.set_n_threads(n_threads);
  const std::size_t part = words_.size() / static_cast<std::size_t>(n_threads);
  std::atomic<std::uint64_t> total{0};  // keeps the sums from being left out
  double best = 0;
  for (int pass = 0; pass < kPasses; pass++) {
    const Stopwatch watch;
    parallel.run(n_threads,
                 [&](int task, int) { total += sum(words_.data() + part * task, part); });
    const double bytes = static_cast<double>(part * sizeof(std::uint64_t)) * n_threads;
    best = std::max(best, bytes / watch.seconds());
  }
  return best;
}

}  // namespace cqkv::app
