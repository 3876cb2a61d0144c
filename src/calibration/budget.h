// From tensors learned at every rate (rated_tensor.h) to the codebook of a budget: putting it
// together, and measuring what each rate costs where that codebook works. Learning, and the texts
// on which costs are measured, are calibrate.h's.
#pragma once

#include <cstddef>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "calibration/rated_tensor.h"
#include "core/parallel.h"
#include "model_pass/kv_rows.h"

namespace cqkv {

/// The keys or the values of one layer at every rate.
struct RatedSide {
  int layer = 0;
  KvKind kind = KvKind::kKey;
  RatedTensor tensor;
};

/// Replaces the layers of `codebook` by those with the rates that `bits` a channel pay for, by
/// choose_rates over all heads of all sides together.
Status fill_codebook(const std::vector<RatedSide>& sides, double bits, Codebook& codebook);

/// Rounds all centroids to bytes (codebook/byte_centroids.h), as attention reads them.
Status round_to_bytes(Codebook& codebook);

/// Costs of all rates (rates.h), measured again on the rows of a run of the model. With the
/// gradients of a model that reads codes they are those of the point at which a cache works: a head
/// that copies with certainty has hardly a gradient while it reads exact keys, and a large one
/// where codes have made it unsure.
///
/// Numerics: sums in f64, the same for any number of threads.
class CostMeter {
 public:
  CostMeter(const std::vector<RatedSide>& sides, ThreadParallelFor& parallel);

  /// A KvSink: rows with gradients. May throw std::bad_alloc.
  Status add(const KvRows& rows);

  /// Sets the losses of all options of the sides to the means over all rows added.
  void set_losses(std::vector<RatedSide>& sides) const;

  /// The same where they are larger. For costs measured at several points: a head that has been
  /// given fine groups is sure of itself again, and its coarse ones look cheap.
  void raise_losses(std::vector<RatedSide>& sides) const;

 private:
  template <typename Function>
  void update_losses(std::vector<RatedSide>& sides, const Function& update) const;

  const std::vector<RatedSide>& sides_;
  ThreadParallelFor& parallel_;                         // its tasks may throw
  std::vector<std::vector<std::vector<double>>> sums_;  // [side][rate][kv_head]
  std::vector<std::size_t> n_rows_;                     // [side]
};

}  // namespace cqkv
