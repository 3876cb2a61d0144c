// The edge at which running out of memory becomes an error: no exception crosses it.
#pragma once

#include <new>
#include <string>
#include <type_traits>

#include "cqkv/status.h"

namespace cqkv {

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

}  // namespace cqkv
