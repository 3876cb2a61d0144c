// The next multiple of a number.
#pragma once

#include <type_traits>

namespace cqkv {

/// The least multiple of `multiple` that is not below n; n >= 0.
template <typename T>
constexpr T round_up(T n, std::type_identity_t<T> multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace cqkv
