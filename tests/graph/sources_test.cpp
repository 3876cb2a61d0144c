// What lies above a node of a graph.
#include "graph/sources.h"

#include <ggml-cpp.h>
#include <gtest/gtest.h>

namespace cqkv {
namespace {

class SourcesTest : public ::testing::Test {
 protected:
  SourcesTest() : context_(ggml_init({ggml_tensor_overhead() * 128, nullptr, /*no_alloc=*/true})) {}

  ggml_tensor* leaf(const char* name) {
    return ggml_set_name(ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, 4, 4), name);
  }

  ggml_context_ptr context_;
};

TEST_F(SourcesTest, AWeightIsFoundAboveAnySource) {
  ggml_tensor* norm = ggml_mul(context_.get(), leaf("x"), leaf("blk.1.attn_norm.weight"));
  ggml_tensor* k = ggml_mul_mat(context_.get(), leaf("blk.1.attn_k.weight"), norm);
  ggml_set_name(k, "k");
  const ggml_tensor* found =
      find_source(ggml_add(context_.get(), leaf("b"), k), "blk.1.attn_norm.weight");
  EXPECT_EQ(found, norm->src[1]);
  EXPECT_EQ(find_source(k, "blk.1.attn_norm"), nullptr);
  EXPECT_EQ(find_source(k, "k"), nullptr) << "the node itself is no source";
}

TEST_F(SourcesTest, OnlyTheNearestAreLookedAt) {
  ggml_tensor* node = leaf("far");
  for (int i = 0; i < 64; i++) {
    node = ggml_scale(context_.get(), node, 2.0F);
  }
  EXPECT_NE(find_source(node, "far"), nullptr);
  EXPECT_EQ(find_source(ggml_scale(context_.get(), node, 2.0F), "far"), nullptr);
}

TEST_F(SourcesTest, ViewsHaveARootAndComputeNothing) {
  ggml_tensor* owner = leaf("x");
  ggml_tensor* flat = ggml_reshape_1d(context_.get(), owner, 16);
  ggml_tensor* view = ggml_view_1d(context_.get(), flat, 4, 8);
  EXPECT_EQ(root_of(view), owner);
  EXPECT_EQ(root_of(owner), owner);
  EXPECT_TRUE(is_noop(view->op));
  EXPECT_TRUE(is_noop(owner->op));
  EXPECT_FALSE(is_noop(ggml_cont(context_.get(), view)->op));
  EXPECT_EQ(node_text(ggml_set_name(ggml_cont(context_.get(), view), "n")), "CONT 'n'");
}

}  // namespace
}  // namespace cqkv
