// Threads that stay: for loops of microseconds, many times a second, where starting threads anew
// (parallel.h) would take longer than the work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace cqkv {

/// One loop at a time. Tasks must not throw.
class ThreadPool final : public ParallelFor {
 public:
  /// Throws std::system_error if the system gives no more threads.
  explicit ThreadPool(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads) {
    try {
      for (int thread = 1; thread < n_threads_; thread++) {
        threads_.emplace_back([this, thread] { serve(thread); });
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~ThreadPool() override { stop(); }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ThreadPool(ThreadPool&&) = delete;
  ThreadPool& operator=(ThreadPool&&) = delete;

  int n_threads() const override { return n_threads_; }

  void run(int n_tasks, const Task& task) override {
    if (threads_.empty() || n_tasks < 2) {
      for (int i = 0; i < n_tasks; i++) {
        task(i, 0);
      }
      return;
    }
    {
      const std::scoped_lock lock(mutex_);
      task_ = &task;
      n_tasks_ = n_tasks;
      next_ = 0;
      n_working_ = static_cast<int>(threads_.size());
      loop_++;
    }
    begin_.notify_all();
    work(task, n_tasks, 0);
    std::unique_lock lock(mutex_);
    end_.wait(lock, [this] { return n_working_ == 0; });
  }

 private:
  void stop() {
    {
      const std::scoped_lock lock(mutex_);
      ended_ = true;
    }
    begin_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  void work(const Task& task, int n_tasks, int thread) {
    for (int i = next_.fetch_add(1); i < n_tasks; i = next_.fetch_add(1)) {
      task(i, thread);
    }
  }

  void serve(int thread) {
    std::uint64_t seen = 0;
    while (true) {
      std::unique_lock lock(mutex_);
      begin_.wait(lock, [&] { return ended_ || loop_ != seen; });
      if (ended_) {
        return;
      }
      seen = loop_;
      const Task& task = *task_;
      const int n_tasks = n_tasks_;
      lock.unlock();
      work(task, n_tasks, thread);
      lock.lock();
      n_working_--;
      if (n_working_ == 0) {
        end_.notify_one();
      }
    }
  }

  int n_threads_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable begin_;
  std::condition_variable end_;
  std::uint64_t loop_ = 0;
  const Task* task_ = nullptr;
  int n_tasks_ = 0;
  int n_working_ = 0;
  bool ended_ = false;
  std::atomic<int> next_{0};
};

}  // namespace cqkv
