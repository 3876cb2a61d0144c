// dense.h for portable (see dense_impl.h): vectors of 4 floats, tiles of 4 x 8.
namespace cqkv::dense {
namespace {
constexpr int kWidth = 4;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
}  // namespace
}  // namespace cqkv::dense

#include "model_pass/dense_impl.h"

namespace cqkv::dense {

extern const Table kPortableTable;
const Table kPortableTable = {
    isa::Level::kScalar, kPanel,       pack,          multiply,    softmax,
    exponentials,        softmax_back, swiglu,        swiglu_back, geglu,
    geglu_back,          rms_norm,     rms_norm_back, dot};

}  // namespace cqkv::dense
