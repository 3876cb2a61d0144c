// dense.h for avx2 (see dense_impl.h): vectors of 8 floats, tiles of 6 x 16.
namespace cqkv::dense {
namespace {
constexpr int kWidth = 8;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace cqkv::dense

#include "model_pass/dense_impl.h"

namespace cqkv::dense {

extern const Table kAvx2Table;
const Table kAvx2Table = {isa::Level::kAvx2, kPanel,       pack,          multiply,    softmax,
                          exponentials,      softmax_back, swiglu,        swiglu_back, geglu,
                          geglu_back,        rms_norm,     rms_norm_back, dot};

}  // namespace cqkv::dense
