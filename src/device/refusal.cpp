// See refusal.h.
#include "device/refusal.h"

#include <mutex>
#include <new>

#include <ggml-impl.h>

namespace cqkv::device {
namespace {

thread_local bool refused = false;
std::mutex error_mutex;
std::string error_text;  // guarded by error_mutex

}  // namespace

void refuse(const Status& reason) {
  if (!refused) {
    report_error(reason.message());
  }
  refused = true;
}

bool is_refused() {
  return refused;
}

bool take_refusal() {
  const bool was = refused;
  refused = false;
  return was;
}

void report_error(const std::string& message) {
  GGML_LOG_ERROR("cqkv: %s\n", message.c_str());
  const std::lock_guard lock(error_mutex);
  try {
    error_text = message;
  } catch (const std::bad_alloc&) {
    error_text.clear();  // it is in the log
  }
}

std::string last_error() {
  const std::lock_guard lock(error_mutex);
  return error_text;
}

void clear_last_error() {
  const std::lock_guard lock(error_mutex);
  error_text.clear();
}

}  // namespace cqkv::device
