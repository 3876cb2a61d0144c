// The parallel loop of the device: OpenMP, so that it shares one team of threads
// with ggml's CPU backend when both run from the same thread.
#pragma once

#include <atomic>

#include <omp.h>

#include "core/parallel.h"

namespace cqkv::device {

class OmpParallelFor final : public ParallelFor {
 public:
  void set_n_threads(int n_threads) { n_threads_ = n_threads < 1 ? 1 : n_threads; }

  int n_threads() const override { return n_threads_; }

  void run(int n_tasks, const Task& task) override {
    if (n_tasks <= 1 || n_threads_ == 1) {
      for (int i = 0; i < n_tasks; i++) {
        task(i, 0);
      }
      return;
    }
    std::atomic<int> next{0};
#pragma omp parallel num_threads(n_threads_)
    {
      const int thread = omp_get_thread_num();
      for (int i = next.fetch_add(1); i < n_tasks; i = next.fetch_add(1)) {
        task(i, thread);
      }
    }
  }

 private:
  int n_threads_ = 1;
};

}  // namespace cqkv::device
