// See types.h.
#include "gguf/types.h"

namespace cqkv::gguf {

const char* type_name(ValueType type) {
  static constexpr const char* kNames[kValueTypes] = {
      "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64"};
  const auto i = static_cast<std::int32_t>(type);
  return i >= 0 && i < kValueTypes ? kNames[i] : "?";
}

std::size_t type_bytes(ValueType type) {
  static constexpr std::uint8_t kBytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  const auto i = static_cast<std::int32_t>(type);
  return i >= 0 && i < kValueTypes ? kBytes[i] : 0;
}

std::size_t element_bytes(TensorType type) {
  switch (type) {
    case TensorType::kF32:
    case TensorType::kI32:
      return 4;
    case TensorType::kF16:
    case TensorType::kI16:
      return 2;
    case TensorType::kI8:
      return 1;
  }
  return 0;
}

const char* type_name(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "f32";
    case TensorType::kF16:
      return "f16";
    case TensorType::kI8:
      return "i8";
    case TensorType::kI16:
      return "i16";
    case TensorType::kI32:
      return "i32";
  }
  return "another type";
}

}  // namespace cqkv::gguf
