// See log.h.
#include "llama/log.h"

#include <cstdio>
#include <deque>
#include <mutex>

#include <llama.h>

namespace cqkv {
namespace {

constexpr std::size_t kKeptLines = 3;

struct LogState {
  std::mutex mutex;
  std::deque<std::string> errors;
  bool echo = false;
  bool in_error = false;  // what GGML_LOG_LEVEL_CONT continues
};

LogState& log_state() {
  static LogState state;
  return state;
}

void on_log(ggml_log_level level, const char* text, void* /*user_data*/) {
  LogState& state = log_state();
  const std::lock_guard lock(state.mutex);
  if (state.echo) {
    std::fputs(text, stderr);
  }
  std::string line = text;
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
    line.pop_back();
  }
  if (level == GGML_LOG_LEVEL_CONT) {
    if (state.in_error && !state.errors.empty()) {
      state.errors.back() += line;
    }
    return;
  }
  state.in_error = level == GGML_LOG_LEVEL_ERROR;
  if (state.in_error && !line.empty()) {
    state.errors.push_back(line);
    if (state.errors.size() > kKeptLines) {
      state.errors.pop_front();
    }
  }
}

}  // namespace

void catch_llama_log(bool echo) {
  {
    const std::lock_guard lock(log_state().mutex);
    log_state().echo = echo;
  }
  llama_log_set(on_log, nullptr);
}

std::string take_llama_errors() {
  LogState& state = log_state();
  const std::lock_guard lock(state.mutex);
  std::string result;
  for (const auto& line : state.errors) {
    result += (result.empty() ? "" : "; ") + line;
  }
  state.errors.clear();
  return result;
}

}  // namespace cqkv
