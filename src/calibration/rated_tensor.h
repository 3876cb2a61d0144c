// The keys or the values of one layer, learned at every rate that their heads may have, and put
// together from the rates chosen for them (rates.h). What learning at a rate means - a basis,
// then k-means - is here; the budget over all layers is budget.h's, running the model
// calibrate.h's.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"
#include "cqkv/types.h"

#include "calibration/rates.h"
#include "calibration/samples.h"
#include "codebook/learn.h"
#include "core/parallel.h"
#include "rope/rope.h"

namespace cqkv {

/// The rates that heads may have, as far as they divide them: one byte for so many channels. Or no
/// codes at all.
inline constexpr CodecSpec kRates[] = {{1, 8}, {2, 8}, {4, 8}, {8, 8}, {16, 8}, {32, 8}, {64, 8}};

/// One tensor at all rates.
struct RatedTensor {
  std::vector<TensorCodebook> codebooks;       ///< [rate], all heads alike; the last: no codes.
  std::vector<std::vector<RateOption>> heads;  ///< [kv_head][rate]
};

/// How to learn.
struct RateLearning {
  LearnOptions learning;
  /// Groups in a basis (bases.h), of samples collected for bases; else groups of neighbouring
  /// channels, each with weights of its own, as the paper has them.
  bool bases = true;
  RopeMode rope_mode = RopeMode::kNormal;  ///< How keys are paired.
};

/// Learns the tensor at every rate and measures what each costs on the held-out rows. Without codes
/// a head is the mean of its rows, weighted as they are for the coarsest rate.
///
/// @return kUnsupported for heads that no rate divides; the errors of learn_tensor_codebook.
/// Numerics: does not depend on the number of threads. May throw std::bad_alloc.
Result<RatedTensor> learn_rates(const TensorSamples& samples, KvKind kind,
                                const RateLearning& options, ParallelFor& parallel);

/// The tensor with each head at the rate chosen for it, [n_kv_heads].
Result<TensorCodebook> assemble(const RatedTensor& tensor, const std::size_t* chosen);

}  // namespace cqkv
