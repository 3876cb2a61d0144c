// Status and Result: how every fallible function of cqkv reports failure. No
// exception crosses the public interface and the library never prints; the
// message says what was found, what was wanted and what to do.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace cqkv {

enum class StatusCode {
  kOk,
  kInvalidArgument,    ///< The caller passed something that cannot work.
  kNotFound,           ///< A file, tensor or key does not exist.
  kCorrupt,            ///< A file or record contradicts itself.
  kMismatch,           ///< Two valid things do not belong together (codebook, model).
  kUnsupported,        ///< Valid, but this version cannot do it.
  kResourceExhausted,  ///< Memory, disk space or a limit.
  kIoError,            ///< The operating system refused a read or write.
  kCancelled,          ///< The user interrupted.
  kInternal,           ///< A fault of ours.
};

/// Lower-case words for a code, e.g. "invalid argument".
std::string_view status_code_name(StatusCode code);

/// A code and, unless ok, a message for a person.
class [[nodiscard]] Status {
 public:
  Status() = default;

  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }

  StatusCode code() const { return code_; }

  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status invalid_argument(std::string message) {
  return {StatusCode::kInvalidArgument, std::move(message)};
}

inline Status unsupported(std::string message) {
  return {StatusCode::kUnsupported, std::move(message)};
}

inline Status corrupt(std::string message) {
  return {StatusCode::kCorrupt, std::move(message)};
}

inline Status io_error(std::string message) {
  return {StatusCode::kIoError, std::move(message)};
}

/// A value, or the Status that says why there is none. Reading the value of a
/// failed result is a programming error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor): by design

  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    if (status_.ok()) {
      status_ = Status(StatusCode::kInternal, "a result was made from an ok status");
    }
  }

  bool ok() const { return value_.has_value(); }

  const Status& status() const { return status_; }

  T& value() & { return *value_; }

  const T& value() const& { return *value_; }

  T&& value() && { return *std::move(value_); }

  T& operator*() & { return *value_; }

  const T& operator*() const& { return *value_; }

  T&& operator*() && { return *std::move(value_); }

  T* operator->() { return &*value_; }

  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace cqkv

/// Returns from the enclosing function if `expr` is a failed Status.
#define CQKV_RETURN_IF_ERROR(expr)        \
  do {                                    \
    ::cqkv::Status cqkv_status_ = (expr); \
    if (!cqkv_status_.ok()) {             \
      return cqkv_status_;                \
    }                                     \
  } while (false)
