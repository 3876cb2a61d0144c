// The plain-thread loop: every task once, thread numbers in range.
#include "core/parallel.h"

#include <atomic>
#include <vector>

#include <gtest/gtest.h>

namespace cqkv {
namespace {

TEST(ThreadParallelFor, RunsEveryTaskOnce) {
  for (const int n_threads : {-1, 1, 2, 7}) {
    ThreadParallelFor parallel(n_threads);
    for (const int n_tasks : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> runs(n_tasks);
      std::atomic<int> bad_threads{0};
      parallel.run(n_tasks, [&](int task, int thread) {
        runs[task]++;
        bad_threads += thread < 0 || thread >= parallel.n_threads() ? 1 : 0;
      });
      for (const auto& count : runs) {
        ASSERT_EQ(count, 1);
      }
      EXPECT_EQ(bad_threads, 0);
    }
  }
}

}  // namespace
}  // namespace cqkv
