// Threads that stay: every task once, loops one after the other, results visible after each.
#include "core/thread_pool.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace cqkv {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int n_threads : {0, 1, 2, 5}) {
    ThreadPool pool(n_threads);
    EXPECT_EQ(pool.n_threads(), std::max(1, n_threads));
    for (const int n_tasks : {0, 1, 2, 3, 100}) {
      for (int loop = 0; loop < 200; loop++) {
        std::vector<int> runs(static_cast<std::size_t>(n_tasks));
        std::vector<int> by_thread(static_cast<std::size_t>(pool.n_threads()));
        pool.run(n_tasks, [&](int task, int thread) {
          runs[static_cast<std::size_t>(task)]++;
          by_thread[static_cast<std::size_t>(thread)]++;
        });
        EXPECT_EQ(runs, std::vector<int>(static_cast<std::size_t>(n_tasks), 1));
        EXPECT_EQ(std::accumulate(by_thread.begin(), by_thread.end(), 0), n_tasks);
      }
    }
  }
}

}  // namespace
}  // namespace cqkv
