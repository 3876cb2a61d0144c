// Timing for benchmarks: implementations take turns, so that what disturbs a machine for a
// while disturbs all of them, and how fast memory can be read, for comparison.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cqkv/status.h"

namespace cqkv::app {

/// The seconds of every timed run of one implementation; never empty.
struct Timings {
  std::vector<double> seconds;

  double minimum() const;

  double median() const;
};

/// Times runs in turns: in every round each run has one turn, in which it is run once untimed,
/// to have its data in the caches as far as they hold it, and then timed for its share of
/// `seconds`, but at least once. At least kMinRounds rounds, however long they take.
///
/// @return the first failure of a run.
Result<std::vector<Timings>> time_in_turns(const std::vector<std::function<Status()>>& runs,
                                           double seconds);

inline constexpr int kMinRounds = 5;

/// Memory to be read at full speed.
class BandwidthMeter {
 public:
  /// kResourceExhausted without memory for a buffer much larger than caches.
  static Result<BandwidthMeter> create();

  /// Of the fastest of some passes, all threads reading a part of the buffer each.
  double bytes_per_second(int n_threads) const;

 private:
  std::vector<std::uint64_t> words_;
};

}  // namespace cqkv::app
