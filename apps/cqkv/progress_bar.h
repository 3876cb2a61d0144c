// Progress on stderr: a bar with the time left on a terminal, a line now and then
// otherwise (logs), nothing but printed lines if quiet.
#pragma once

#include <chrono>
#include <string>

namespace cqkv::app {

class ProgressBar {
 public:
  explicit ProgressBar(std::string title, bool quiet = false);

  /// Ends the line, so that what follows begins on a fresh one.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ProgressBar(ProgressBar&&) = delete;
  ProgressBar& operator=(ProgressBar&&) = delete;

  /// `fraction` in [0, 1] of the whole; `note` is shown beside it. Cheap to call often.
  /// A fraction below the last one starts the clock anew (a new stage).
  void update(double fraction, const std::string& note);

  /// Shows a line of its own, also if quiet; a bar goes on below it.
  void print(const std::string& line);

 private:
  using Clock = std::chrono::steady_clock;

  void draw_bar(double fraction, const std::string& left, const std::string& note);

  std::string title_;
  bool quiet_;
  bool terminal_;
  bool drawn_ = false;
  double last_fraction_ = 0;
  double start_fraction_ = 0;
  Clock::time_point start_;
  Clock::time_point last_shown_;
};

/// "0:42", "12:05", "1:02:03".
std::string clock_text(double seconds);

}  // namespace cqkv::app
