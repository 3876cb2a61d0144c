// The plain-thread loop: every task once, thread numbers in range.
#include "core/parallel.h"

#include <atomic>
#include <new>
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

TEST(ThreadParallelFor, ThrowsWhatATaskThrew) {
  for (const int n_threads : {1, 3}) {
    ThreadParallelFor parallel(n_threads);
    std::atomic<int> n_done{0};
    const auto task = [&](int i, int) {
      if (i == 2) {
        throw std::bad_alloc();
      }
      n_done++;
    };
    EXPECT_THROW(parallel.run(100, task), std::bad_alloc);
    EXPECT_LT(n_done, 100);
    parallel.run(2, task);  // works again
  }
}

}  // namespace
}  // namespace cqkv
