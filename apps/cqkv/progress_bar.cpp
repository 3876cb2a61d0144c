// See progress_bar.h.
#include "progress_bar.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include <unistd.h>

#include "command.h"

namespace cqkv::app {
namespace {

constexpr int kBarWidth = 24;
constexpr double kTerminalSeconds = 0.1;
constexpr double kLogSeconds = 15;

double seconds_between(std::chrono::steady_clock::time_point a,
                       std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

}  // namespace

std::string clock_text(double seconds) {
  const auto total = std::lround(std::max(0.0, seconds));
  const long hours = total / 3600;
  return hours > 0 ? format("%ld:%02ld:%02ld", hours, total / 60 % 60, total % 60)
                   : format("%ld:%02ld", total / 60, total % 60);
}

ProgressBar::ProgressBar(std::string title, bool quiet)
    : title_(std::move(title)),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_shown_(start_ - std::chrono::hours(1)) {
}

ProgressBar::~ProgressBar() {
  if (drawn_ && terminal_) {
    std::fputc('\n', stderr);
  }
}

void ProgressBar::draw_bar(double fraction, const std::string& left, const std::string& note) {
  const int n_full = static_cast<int>(fraction * kBarWidth);
  std::string bar(static_cast<std::size_t>(kBarWidth), '.');
  std::fill_n(bar.begin(), n_full, '#');
  // "\033[K" clears what a longer line left behind.
  std::fprintf(stderr, "\r%s [%s] %3.0f %%%s  %s\033[K", title_.c_str(), bar.c_str(),
               100 * fraction, left.c_str(), note.c_str());
  std::fflush(stderr);
}

void ProgressBar::print(const std::string& line) {
  std::fprintf(stderr, "%s%s\n", drawn_ && terminal_ ? "\r\033[K" : "", line.c_str());
}

void ProgressBar::update(double fraction, const std::string& note) {
  if (quiet_) {
    return;
  }
  fraction = std::clamp(fraction, 0.0, 1.0);
  const auto now = Clock::now();
  if (fraction < last_fraction_) {
    start_ = now;
    start_fraction_ = fraction;
  }
  const bool finished = fraction >= 1.0 && last_fraction_ < 1.0;
  last_fraction_ = fraction;
  if (!finished &&
      seconds_between(last_shown_, now) < (terminal_ ? kTerminalSeconds : kLogSeconds)) {
    return;
  }
  last_shown_ = now;
  const double elapsed = seconds_between(start_, now);
  const double done = fraction - start_fraction_;
  std::string left;
  if (finished) {
    left = ", took " + clock_text(elapsed);
  } else if (done > 0 && elapsed > 1) {
    left = ", " + clock_text(elapsed * (1 - fraction) / done) + " left";
  }
  if (terminal_) {
    draw_bar(fraction, left, note);
    drawn_ = true;
  } else {
    std::fprintf(stderr, "%s: %.0f %%%s  %s\n", title_.c_str(), 100 * fraction, left.c_str(),
                 note.c_str());
  }
}

}  // namespace cqkv::app
