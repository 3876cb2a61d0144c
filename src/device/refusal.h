// How the device says no. ggml gives a backend no way to fail while a graph is
// planned: supports_op may only answer yes or no, and no for an operation on our
// own tensors ends in an abort. So the reason is remembered, the buffer allocation
// that follows on the same thread fails, and the host refuses the context; the
// same check runs again before each graph as a backstop (architecture, rule 3).
#pragma once

#include <string>

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

}  // namespace cqkv::device
