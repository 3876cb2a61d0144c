// The scalar level: compiled for the platform's baseline, always present. On x86
// that means four lanes and separate multiplication and addition.
#include <cstddef>
#include <cstdint>

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 4;
using Vec = float __attribute__((vector_size(16)));
using IntVec = std::int32_t __attribute__((vector_size(16)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return a * b + c;
}

// Exponent and mantissa moved into place are the value times 2^-112, subnormals
// included; infinities and NaN need the exponent filled up.
inline Vec widen(const std::uint16_t* in) {
  const IntVec halves = {in[0], in[1], in[2], in[3]};
  const IntVec magnitude = (halves & 0x7FFF) << 13;
  const Vec value = __builtin_bit_cast(Vec, magnitude) * 0x1p112F;
  const IntVec special = (magnitude >= 0x0F800000) & 0x7F800000;
  const IntVec sign = (halves & 0x8000) << 16;
  return __builtin_bit_cast(Vec, __builtin_bit_cast(IntVec, value) | special | sign);
}

using Bytes = std::uint8_t __attribute__((vector_size(16)));

inline Bytes pick_bytes(Bytes from, Bytes order) {
  Bytes bytes = {};
  for (int i = 0; i < 16; i++) {
    bytes[i] = order[i] < 16 ? from[order[i]] : 0;
  }
  return bytes;
}

// In integer_scalar.inc.
std::int32_t powers_row(const Vec* y, std::uint8_t* out);

}  // namespace
}  // namespace cqkv::kernels

#include "kernels/integer_scalar.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kScalarTable = make_table(isa::Level::kScalar);

}  // namespace cqkv::kernels
