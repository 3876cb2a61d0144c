// See tensor_codec.h.
#include "codec/tensor_codec.h"

#include <utility>

namespace cqkv {

TensorCodec::TensorCodec(const TensorCodebook& codebook)
    : codebook_(&codebook), layout_(codebook.spec()) {
}

TensorCodec::TensorCodec(const TensorCodebook& codebook, KvKind kind, const RopeParams* rope,
                         const kernels::KernelTable& kernel)
    : TensorCodec(codebook) {
  if (ByteTables::usable(codebook.spec().code_bits(), kernel)) {
    kernel_ = kernels::integer_kernels(kernel, codebook.spec().code_bits());
    tables_ = ByteTables::of(codebook, kind, kind == KvKind::kKey ? rope : nullptr, kernel);
    precise_ = tables_->precise();
  }
}

TensorCodec::TensorCodec(const TensorCodebook& codebook, ByteTables tables,
                         const kernels::KernelTable& kernel)
    : codebook_(&codebook),
      layout_(codebook.spec()),
      kernel_(kernels::integer_kernels(kernel, codebook.spec().code_bits())),
      tables_(std::move(tables)),
      precise_(true) {
}

bool TensorCodec::fits(const kernels::KernelTable& kernel) const {
  return tables() == nullptr || kernel_ == kernels::integer_kernels(kernel, spec().code_bits());
}

bool TensorCodec::is_for(const RopeParams* rope, const kernels::KernelTable& kernel) const {
  const int code_bits = spec().code_bits();
  if (!ByteTables::usable(code_bits, kernel)) {
    return !tables_;
  }
  return tables_ && kernel_ == kernels::integer_kernels(kernel, code_bits) &&
         tables_->pairs().fit(rope);
}

}  // namespace cqkv
