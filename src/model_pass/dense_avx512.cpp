// dense.h for avx512 (see dense_impl.h): vectors of 16 floats, tiles of 12 x 32.
namespace cqkv::dense {
namespace {
constexpr int kWidth = 16;
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace cqkv::dense

#include "model_pass/dense_impl.h"

namespace cqkv::dense {

extern const Table kAvx512Table;
const Table kAvx512Table = {isa::Level::kAvx512, kPanel,       pack,          multiply,    softmax,
                            exponentials,        softmax_back, swiglu,        swiglu_back, geglu,
                            geglu_back,          rms_norm,     rms_norm_back, dot};

}  // namespace cqkv::dense
