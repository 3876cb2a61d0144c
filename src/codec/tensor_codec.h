// What the codes of one tensor (keys or values of one layer) mean: the centroids, where codes lie,
// and the centroids as bytes for the kernels in use. Made once from a codebook and, of keys, a
// rotation; whoever stores, moves, reads or attends to codes asks it.
#pragma once

#include <optional>

#include "cqkv/codebook.h"

#include "codec/byte_tables.h"
#include "codec/code_blocks.h"
#include "kernels/dispatch.h"
#include "rope/rope.h"

namespace cqkv {

/// Const after construction; all methods may run at once. May throw std::bad_alloc when made.
class TensorCodec {
 public:
  /// Codes that are decoded to floats. The codebook must outlive this.
  explicit TensorCodec(const TensorCodebook& codebook);

  /// Codes that are read as bytes by these kernels; decoded to floats if such kernels cannot read
  /// codes of this width, or if bytes are too coarse for these centroids (ByteTables::precise).
  /// @param rope  The keys' rotation, null for none; not read for values.
  TensorCodec(const TensorCodebook& codebook, KvKind kind, const RopeParams* rope,
              const kernels::KernelTable& kernel);

  /// Codes that are read as these bytes, made of the same codebook for usable codes and these
  /// kernels, however coarse they are.
  TensorCodec(const TensorCodebook& codebook, ByteTables tables,
              const kernels::KernelTable& kernel);

  const TensorCodebook& codebook() const { return *codebook_; }

  const TensorSpec& spec() const { return codebook_->spec(); }

  const TensorBasis& basis() const { return codebook_->basis(); }

  const CodeLayout& layout() const { return layout_; }

  /// Null: codes are decoded to floats.
  const ByteTables* tables() const { return tables_ && precise_ ? &*tables_ : nullptr; }

  /// Whether its tables were made for these kernels, or it has none. (Others might want the same
  /// order of bytes, but not the same of angles.)
  bool fits(const kernels::KernelTable& kernel) const;

  /// Whether it is what the second constructor would make of the same codebook.
  bool is_for(const RopeParams* rope, const kernels::KernelTable& kernel) const;

 private:
  const TensorCodebook* codebook_;
  CodeLayout layout_;
  const kernels::KernelTable* kernel_ = nullptr;  // that reads the tables
  std::optional<ByteTables> tables_;
  bool precise_ = false;
};

}  // namespace cqkv
