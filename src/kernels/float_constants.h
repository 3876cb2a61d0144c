// Constants of kernels on floats that have no better place. Constants only, as it is included by
// the per-instruction-set files; not inline, so that no level's copy stands for another's.
#pragma once

namespace cqkv::kernels {

constexpr float kInfinity = __builtin_inff();

/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
constexpr float kRound = 12582912.0F;

}  // namespace cqkv::kernels
