// The parallel loop that callers hand to the core library: OpenMP in the device
// (one team with ggml's CPU backend), plain threads in the tools and tests.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace cqkv {

/// Runs task(i, thread) for every i in [0, n_tasks), each once, on any thread in
/// [0, n_threads()); returns when all are done. Tasks must not throw.
class ParallelFor {
 public:
  using Task = std::function<void(int task, int thread)>;

  virtual ~ParallelFor() = default;

  virtual int n_threads() const = 0;

  virtual void run(int n_tasks, const Task& task) = 0;

 protected:
  ParallelFor() = default;
  ParallelFor(const ParallelFor&) = default;
  ParallelFor(ParallelFor&&) = default;
  ParallelFor& operator=(const ParallelFor&) = default;
  ParallelFor& operator=(ParallelFor&&) = default;
};

/// Starts its threads anew for each loop: right for loops of milliseconds and up. Here tasks may
/// throw: the first exception is thrown again once all threads have stopped.
class ThreadParallelFor final : public ParallelFor {
 public:
  explicit ThreadParallelFor(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads) {}

  int n_threads() const override { return n_threads_; }

  void run(int n_tasks, const Task& task) override {
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr exception;
    const auto work = [&](int thread) {
      try {
        for (int i = next.fetch_add(1); i < n_tasks && !failed; i = next.fetch_add(1)) {
          task(i, thread);
        }
      } catch (...) {
        if (!failed.exchange(true)) {
          exception = std::current_exception();
        }
      }
    };
    {
      std::vector<std::jthread> threads;
      for (int thread = 1; thread < n_threads_ && thread < n_tasks; thread++) {
        threads.emplace_back(work, thread);
      }
      work(0);
    }
    if (failed) {
      std::rethrow_exception(exception);
    }
  }

 private:
  int n_threads_;
};

}  // namespace cqkv
