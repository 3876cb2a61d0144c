// What a codec is made for, and when it must be made anew.
#include "codec/tensor_codec.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "kernels/dispatch.h"
#include "support/codebooks.h"

namespace cqkv {
namespace {

RopeParams rope(float base) {
  RopeParams params;
  params.n_dims = 64;
  params.freq_base = base;
  return params;
}

class Codec : public ::testing::Test {
 protected:
  ~Codec() override { (void)force_isa(supported_isas().front()); }

  TensorCodebook codebook = testing::random_mixed_tensor(8, {8, 32, 0}, 64, 1);
};

TEST_F(Codec, WithoutTablesItServesAllKernels) {
  const TensorCodec codec(codebook);
  EXPECT_EQ(codec.tables(), nullptr);
  EXPECT_EQ(codec.layout().n_codes(), 8 + 2);
  EXPECT_TRUE(codec.fits(kernels::active()));
}

TEST_F(Codec, TablesAreForOneLevelAndOneRotation) {
  const RopeParams one = rope(10000);
  const RopeParams other = rope(500000);
  for (const std::string& made_for : supported_isas()) {
    ASSERT_TRUE(force_isa(made_for).ok());
    const TensorCodec keys(codebook, KvKind::kKey, &one, kernels::active());
    ASSERT_NE(keys.tables(), nullptr);
    EXPECT_TRUE(keys.is_for(&one, kernels::active()));
    EXPECT_FALSE(keys.is_for(&other, kernels::active()));
    EXPECT_FALSE(keys.is_for(nullptr, kernels::active()));
    EXPECT_TRUE(TensorCodec(codebook, KvKind::kValue, nullptr, kernels::active())
                    .is_for(nullptr, kernels::active()));
    for (const std::string& used_by : supported_isas()) {
      ASSERT_TRUE(force_isa(used_by).ok());
      EXPECT_EQ(keys.fits(kernels::active()), used_by == made_for) << made_for << " " << used_by;
      EXPECT_EQ(keys.is_for(&one, kernels::active()), used_by == made_for);
    }
  }
}

// Bytes that cannot tell centroids apart are not used, and not made again and again.
TEST_F(Codec, CoarseTablesAreLeftAside) {
  const TensorCodebook fine = testing::random_mixed_tensor(8, {1, 1}, 64, 1);
  const TensorCodec codec(fine, KvKind::kValue, nullptr, kernels::active());
  EXPECT_EQ(codec.tables(), nullptr);
  EXPECT_TRUE(codec.fits(kernels::active()));
  EXPECT_TRUE(codec.is_for(nullptr, kernels::active()));
}

}  // namespace
}  // namespace cqkv
