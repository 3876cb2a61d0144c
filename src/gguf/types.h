// The types of GGUF files, of which models and codebooks are made: numbers of the format, version
// 2 and 3 (the page for people: ggml's docs/gguf.md). Reading is reader.h, writing writer.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cqkv::gguf {

inline constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};
inline constexpr std::uint32_t kVersion = 3;
inline constexpr std::uint32_t kDefaultAlignment = 32;
inline constexpr const char* kAlignmentKey = "general.alignment";
inline constexpr int kMaxAxes = 4;
inline constexpr std::size_t kMaxTensorName = 63;  // bytes

/// What the value of a key is.
enum class ValueType : std::int32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

inline constexpr std::int32_t kValueTypes = 13;

/// "u32", "str" and so on; "?" for a number that GGUF does not have.
const char* type_name(ValueType type);

/// Bytes of a number; 0 for strings, arrays and what GGUF does not have.
std::size_t type_bytes(ValueType type);

/// What the elements of a tensor are: ggml's numbers. Only those of codebooks have names here; a
/// model's tensors have many more.
enum class TensorType : std::int32_t {
  kF32 = 0,
  kF16 = 1,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
};

/// Bytes of an element of a type with a name here, else 0.
std::size_t element_bytes(TensorType type);

/// "f16", or "another type" for one without a name here.
const char* type_name(TensorType type);

}  // namespace cqkv::gguf
