// What ROPE nodes are read as, and which are refused.
#include "graph/rope_node.h"

#include <memory>
#include <vector>

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>

namespace cqkv {
namespace {

constexpr int kHeadDim = 16;
constexpr int kDims = 12;

// A graph of one rotation.
class RopeNodeTest : public testing::Test {
 protected:
  struct Free {
    void operator()(ggml_context* context) const { ggml_free(context); }

    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
  };

  RopeNodeTest() : context_(ggml_init({1 << 16, nullptr, /*no_alloc=*/true})) {}

  ggml_tensor* vector(ggml_type type, int n) { return ggml_new_tensor_1d(context_.get(), type, n); }

  // With other numbers for all parameters.
  ggml_tensor* rope(int mode, ggml_tensor* factors = nullptr, int n_dims = kDims) {
    ggml_tensor* rows = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, kHeadDim, 2, 3);
    ggml_tensor* node = ggml_rope_ext(context_.get(), rows, vector(GGML_TYPE_I32, 3), factors,
                                      kDims, mode, 4096, 5e5F, 0.25F, 1.0F, 1.5F, 30.0F, 2.0F);
    node->op_params[1] = n_dims;
    return node;
  }

  void allocate() {
    buffer_.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), ggml_backend_cpu_buffer_type()));
    ASSERT_NE(buffer_, nullptr);
  }

  static void expect_refused(const ggml_tensor* node, StatusCode code, const char* part) {
    const auto params = read_rope(node);
    ASSERT_FALSE(params.ok()) << part;
    EXPECT_EQ(params.status().code(), code) << params.status().message();
    EXPECT_NE(params.status().message().find(part), std::string::npos) << params.status().message();
  }

  std::unique_ptr<ggml_context, Free> context_;
  std::unique_ptr<ggml_backend_buffer, Free> buffer_;
};

TEST_F(RopeNodeTest, AllParametersAreRead) {
  RopeParams want;
  want.n_dims = kDims;
  want.n_ctx_orig = 4096;
  want.freq_base = 5e5F;
  want.freq_scale = 0.25F;
  want.ext_factor = 1.0F;
  want.attn_factor = 1.5F;
  want.beta_fast = 30.0F;
  want.beta_slow = 2.0F;
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    want.mode = mode;
    const auto params = read_rope(rope(static_cast<int>(mode)));
    ASSERT_TRUE(params.ok()) << params.status().message();
    EXPECT_EQ(*params, want);
  }
}

TEST_F(RopeNodeTest, FactorsAreReadWhereTheyAre) {
  ggml_tensor* factors = vector(GGML_TYPE_F32, kDims / 2 + 3);
  ggml_tensor* node = rope(GGML_ROPE_TYPE_NEOX, factors);
  const auto planned = read_rope(node);
  ASSERT_TRUE(planned.ok()) << planned.status().message();
  EXPECT_TRUE(planned->freq_factors.empty());
  allocate();
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  ggml_backend_tensor_set(factors, values.data(), 0, values.size() * sizeof(float));
  const auto params = read_rope(node);
  ASSERT_TRUE(params.ok()) << params.status().message();
  EXPECT_EQ(params->freq_factors, std::vector<float>(values.begin(), values.begin() + kDims / 2));
  factors->buffer = nullptr;
  expect_refused(node, StatusCode::kInternal, "no memory");
}

// Pairs that take the fourth position stand still.
TEST_F(RopeNodeTest, SectionsAreNeox) {
  ggml_tensor* rows = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F32, kHeadDim, 2, 3);
  int sections[4] = {2, 1, 1, 2};
  ggml_tensor* node =
      ggml_rope_multi(context_.get(), rows, vector(GGML_TYPE_I32, 12), nullptr, kDims, sections,
                      GGML_ROPE_TYPE_MROPE, 0, 1e4F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
  EXPECT_TRUE(has_sections(node));
  EXPECT_FALSE(has_sections(rope(GGML_ROPE_TYPE_NEOX)));
  const auto params = read_rope(node);
  ASSERT_TRUE(params.ok()) << params.status().message();
  EXPECT_EQ(params->mode, RopeMode::kNeox);
  std::vector<float> want;
  const RopeSections same = {{2, 1, 1, 2}, false};
  same.stop_fourth(kDims / 2, want);
  EXPECT_FALSE(want.empty());
  EXPECT_EQ(params->freq_factors, want);
}

TEST_F(RopeNodeTest, WhatCannotBeRotatedBackIsRefused) {
  ggml_tensor* of_vision = rope(GGML_ROPE_TYPE_NEOX);
  of_vision->op_params[2] = GGML_ROPE_TYPE_VISION;
  expect_refused(of_vision, StatusCode::kUnsupported, "mode 24");
  ggml_tensor* later = rope(GGML_ROPE_TYPE_NEOX);
  later->op_params[15] = 4;
  expect_refused(later, StatusCode::kUnsupported, "begins at channel 4");
  for (const int n_dims : {-2, 3, kHeadDim + 2}) {
    ggml_tensor* factors = vector(GGML_TYPE_F32, kDims);
    expect_refused(rope(GGML_ROPE_TYPE_NEOX, factors, n_dims), StatusCode::kInvalidArgument,
                   std::to_string(n_dims).c_str());
  }
  ggml_tensor* few = rope(GGML_ROPE_TYPE_NEOX, vector(GGML_TYPE_F32, kDims / 2));
  few->src[2]->ne[0] = kDims / 2 - 1;
  expect_refused(few, StatusCode::kUnsupported, "5 of them");
  ggml_tensor* halves = rope(GGML_ROPE_TYPE_NEOX, vector(GGML_TYPE_F32, kDims / 2));
  halves->src[2]->type = GGML_TYPE_F16;
  expect_refused(halves, StatusCode::kUnsupported, "type f16");
}

}  // namespace
}  // namespace cqkv
