// How the device says no. ggml gives a backend no way to fail while a graph is
// planned: supports_op may only answer yes or no, and no for an operation on our
// own tensors ends in an abort. So the reason is remembered, the buffer allocation
// that follows on the same thread fails, and the host refuses the context; the
// same check runs again before each graph as a backstop (architecture, rule 3). Also
// how running out of memory becomes an error: no exception may reach ggml.
#pragma once

#include <new>
#include <string>
#include <type_traits>

#include "cqkv/status.h"

namespace cqkv::device {

/// Remembers why the graph being planned on this thread cannot be served, logs it
/// once, and makes it the last error.
void refuse(const Status& reason);

/// Whether a reason is remembered on this thread.
bool is_refused();

/// Takes the reason remembered on this thread: true if there was one.
bool take_refusal();

/// Logs an error and makes it the last error.
void report_error(const std::string& message);

/// The text of the last error of the process, "" if none since the last clear.
std::string last_error();
void clear_last_error();

/// What `function` returns (Status, Result, or nothing: ok), and kResourceExhausted,
/// "out of memory <doing>", if memory runs out in it.
template <typename Function, typename Returned = std::invoke_result_t<Function>>
auto without_exceptions(const char* doing, const Function& function)
    -> std::conditional_t<std::is_void_v<Returned>, Status, Returned> {
  try {
    if constexpr (std::is_void_v<Returned>) {
      function();
      return {};
    } else {
      return function();
    }
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted, std::string("out of memory ") + doing);
  }
}

}  // namespace cqkv::device
