// One thread, and the promise of ParallelFor that tasks do not throw is kept or fatal.
#pragma once

#include "core/parallel.h"

namespace cqkv::testing {

class StrictParallelFor final : public ParallelFor {
 public:
  int n_threads() const override { return 1; }

  void run(int n_tasks, const Task& task) override {
    const auto run_one = [&](int i) noexcept { task(i, 0); };
    for (int i = 0; i < n_tasks; i++) {
      run_one(i);
    }
  }
};

}  // namespace cqkv::testing
