// What stores into caches are read as: the rotation of keys through every chain of views and
// copies that keeps the order of rows, and a reason for every graph that cannot be served. What
// is accepted is also computed: a wrong order would rotate keys back by the wrong angles.
#include "graph/cache_store.h"

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>

namespace cqkv {
namespace {

constexpr int kHeadDim = 8;
constexpr int kHeads = 3;
constexpr int kChannels = kHeads * kHeadDim;
constexpr int kTokens = 3;  // as many as heads: a mixture of both must not look right
constexpr int kEmbd = 16;

/// Builds one node after another; nothing has memory before compute().
class Graph {
 public:
  Graph()
      : context_(ggml_init(
            {ggml_tensor_overhead() * 512 + ggml_graph_overhead(), nullptr, /*no_alloc=*/true})) {}

  ggml_context* get() const { return context_.get(); }

  ggml_tensor* leaf(int n0, int n1 = 1, int n2 = 1) {
    inputs_.push_back(ggml_new_tensor_3d(get(), GGML_TYPE_F32, n0, n1, n2));
    return inputs_.back();
  }

  /// [n_channels, kTokens]: the product of a weight.
  ggml_tensor* projection(int n_channels = kChannels) {
    return ggml_mul_mat(get(), leaf(kEmbd, n_channels), leaf(kEmbd, kTokens));
  }

  /// [kHeadDim, n_heads, n_tokens]
  ggml_tensor* rope(int n_heads = kHeads, int n_tokens = kTokens, bool in_place = false) {
    ggml_tensor* heads = in_place ? leaf(kHeadDim, n_heads, n_tokens)
                                  : ggml_scale(get(), leaf(kHeadDim, n_heads, n_tokens), 2.0F);
    positions_ = ggml_new_tensor_1d(get(), GGML_TYPE_I32, n_tokens);
    const auto make = in_place ? ggml_rope_inplace : ggml_rope;
    return make(get(), heads, positions_, kHeadDim, GGML_ROPE_TYPE_NEOX);
  }

  /// As llama.cpp takes rows of [head_dim, n_heads, n_tokens].
  ggml_tensor* rows_of(ggml_tensor* heads) {
    return ggml_view_2d(get(), heads, heads->ne[0] * heads->ne[1], heads->ne[2], heads->nb[2], 0);
  }

  ggml_tensor* store(ggml_tensor* rows, const char* name = "cache_k_l3") {
    ggml_tensor* cache = ggml_new_tensor_2d(get(), GGML_TYPE_F16, rows->ne[0], 64);
    ggml_set_name(cache, name);
    cells_ = ggml_new_tensor_1d(get(), GGML_TYPE_I64, rows->ne[1]);
    return ggml_set_rows(get(), cache, rows, cells_);
  }

  void compute(ggml_tensor* node) {
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(get(), ggml_backend_cpu_buffer_type()));
    ASSERT_NE(buffer_, nullptr);
    float value = 0;
    for (ggml_tensor* input : inputs_) {
      for (std::int64_t i = 0; i < ggml_nelements(input); i++) {
        static_cast<float*>(input->data)[i] = value += 1.0F;
      }
    }
    for (std::int64_t t = 0; t < positions_->ne[0]; t++) {
      static_cast<std::int32_t*>(positions_->data)[t] = static_cast<std::int32_t>(t);
    }
    for (std::int64_t t = 0; t < cells_->ne[0]; t++) {
      static_cast<std::int64_t*>(cells_->data)[t] = t;
    }
    ggml_cgraph* graph = ggml_new_graph(get());
    ggml_build_forward_expand(graph, node);
    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    ASSERT_EQ(ggml_backend_graph_compute(cpu.get(), graph), GGML_STATUS_SUCCESS);
  }

 private:
  ggml_context_ptr context_;
  ggml_backend_buffer_ptr buffer_;
  std::vector<ggml_tensor*> inputs_;
  ggml_tensor* positions_ = nullptr;
  ggml_tensor* cells_ = nullptr;
};

std::vector<float> values_of(const ggml_tensor* matrix) {
  std::vector<float> values;
  for (std::int64_t row = 0; row < matrix->ne[1]; row++) {
    for (std::int64_t i = 0; i < matrix->ne[0]; i++) {
      values.push_back(*reinterpret_cast<const float*>(static_cast<const char*>(matrix->data) +
                                                       row * matrix->nb[1] + i * matrix->nb[0]));
    }
  }
  return values;
}

// Heads [first, first + kHeads) of each token of a rotation's result.
std::vector<float> heads_of(const ggml_tensor* rope, int first) {
  std::vector<float> values;
  for (std::int64_t t = 0; t < rope->ne[2]; t++) {
    const auto* token = static_cast<const float*>(rope->data) + t * rope->ne[1] * kHeadDim;
    values.insert(values.end(), token + first * kHeadDim, token + first * kHeadDim + kChannels);
  }
  return values;
}

// ---- Chains between a rotation and the store -------------------------------

struct Chain {
  std::string name;
  std::function<ggml_tensor*(Graph&, ggml_tensor* rope)> rows;
  int n_heads = kHeads;  // that are rotated
  int first_head = 0;    // that is stored
  int n_tokens = kTokens;
  bool in_place = false;
};

ggml_tensor* swapped(Graph& graph, ggml_tensor* heads) {
  return ggml_permute(graph.get(), heads, 0, 2, 1, 3);
}

// kHeads of more heads, from `first` on.
ggml_tensor* some_heads(Graph& graph, ggml_tensor* rope, int first) {
  return ggml_view_3d(graph.get(), rope, kHeadDim, kHeads, rope->ne[2], rope->nb[1], rope->nb[2],
                      static_cast<std::size_t>(first) * rope->nb[1]);
}

const std::vector<Chain> kKept = {
    {"view", [](Graph& g, ggml_tensor* k) { return g.rows_of(k); }},
    {"reshape",
     [](Graph& g, ggml_tensor* k) { return ggml_reshape_2d(g.get(), k, kChannels, kTokens); }},
    {"reshapes",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* flat = ggml_reshape_2d(g.get(), k, kHeadDim / 2, 2 * kHeads * kTokens);
       return ggml_reshape_2d(g.get(), flat, kChannels, kTokens);
     }},
    {"copy", [](Graph& g, ggml_tensor* k) { return g.rows_of(ggml_cont(g.get(), k)); }},
    {"copy_of_rows", [](Graph& g, ggml_tensor* k) { return ggml_cont(g.get(), g.rows_of(k)); }},
    {"copies",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* once = ggml_cont_2d(g.get(), k, kHeadDim, kHeads * kTokens);
       return ggml_cont_2d(g.get(), once, kChannels, kTokens);
     }},
    {"permuted_and_back",
     [](Graph& g, ggml_tensor* k) {
       return g.rows_of(ggml_cont(g.get(), swapped(g, swapped(g, k))));
     }},
    {"some_heads",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* heads = some_heads(g, k, 2);
       return ggml_view_2d(g.get(), heads, kChannels, kTokens, heads->nb[2], 0);
     },
     kHeads + 2, 2},
    {"copy_of_some_heads",
     [](Graph& g, ggml_tensor* k) {
       return ggml_cont_2d(g.get(), some_heads(g, k, 1), kChannels, kTokens);
     },
     kHeads + 2, 1},
    {"one_token", [](Graph& g, ggml_tensor* k) { return g.rows_of(k); }, kHeads, 0, 1},
    {"in_place", [](Graph& g, ggml_tensor* k) { return g.rows_of(k); }, kHeads, 0, kTokens, true},
};

// Rows in another order: rotated back they would be wrong.
const std::vector<Chain> kMixed = {
    {"heads_for_tokens",
     [](Graph& g, ggml_tensor* k) { return g.rows_of(ggml_cont(g.get(), swapped(g, k))); }},
    {"heads_for_tokens_twice_copied",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* once = ggml_cont(g.get(), swapped(g, k));
       return ggml_cont_2d(g.get(), once, kChannels, kTokens);
     }},
    {"channels_for_heads",
     [](Graph& g, ggml_tensor* k) {
       return ggml_cont_2d(g.get(), ggml_permute(g.get(), k, 1, 0, 2, 3), kChannels, kTokens);
     }},
    {"halves_of_heads",
     [](Graph& g, ggml_tensor* k) {
       return ggml_view_2d(g.get(), k, kChannels, kTokens, k->nb[2], kHeadDim / 2 * sizeof(float));
     },
     kHeads + 1},
    {"other_tokens",
     [](Graph& g, ggml_tensor* k) {
       return ggml_view_2d(g.get(), k, kChannels, kTokens, k->nb[2], k->nb[2]);
     },
     kHeads, 0, kTokens + 1},
    {"a_gap_within_rows",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* heads =
           ggml_view_3d(g.get(), k, kHeadDim, kHeads, kTokens, 2 * k->nb[1], k->nb[2], 0);
       return ggml_cont_2d(g.get(), heads, kChannels, kTokens);
     },
     2 * kHeads},
    {"a_copy_across_a_gap",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* flat = ggml_view_1d(g.get(), k, kChannels * kTokens, 0);
       return ggml_cont_2d(g.get(), flat, kChannels, kTokens);
     },
     kHeads + 1},
    {"a_token_later_in_a_copy",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* all = ggml_cont(g.get(), k);
       return ggml_view_2d(g.get(), all, kChannels, kTokens, all->nb[2], all->nb[2]);
     },
     kHeads, 0, kTokens + 1},
    {"a_head_later_in_a_copied_token",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* all = ggml_cont(g.get(), k);
       return ggml_view_2d(g.get(), all, kChannels, 1, all->nb[2], all->nb[1]);
     },
     kHeads + 1, 0, 1},
    {"part_of_a_copy",
     [](Graph& g, ggml_tensor* k) {
       ggml_tensor* all = ggml_cont(g.get(), k);
       return ggml_view_2d(g.get(), all, kChannels, kTokens, all->nb[2], all->nb[1] / 2);
     },
     kHeads + 1},
};

std::string chain_name(const ::testing::TestParamInfo<Chain>& info) {
  return info.param.name;
}

std::ostream& operator<<(std::ostream& out, const Chain& chain) {
  return out << chain.name;
}

class KeptOrder : public ::testing::TestWithParam<Chain> {};

TEST_P(KeptOrder, FindsTheRotationOfTheRows) {
  const Chain& chain = GetParam();
  Graph graph;
  ggml_tensor* rope = graph.rope(chain.n_heads, chain.n_tokens, chain.in_place);
  ggml_tensor* node = graph.store(chain.rows(graph, rope));
  const auto store = read_cache_store(node);
  ASSERT_TRUE(store.ok()) << store.status().message();
  EXPECT_EQ(store->rotation, rope);
  EXPECT_EQ(store->rope.n_dims, kHeadDim);
  EXPECT_EQ(store->head_dim, kHeadDim);
  graph.compute(node);
  EXPECT_EQ(values_of(store->rows), heads_of(rope, chain.first_head));
}

INSTANTIATE_TEST_SUITE_P(Chains, KeptOrder, ::testing::ValuesIn(kKept), chain_name);

class OtherOrder : public ::testing::TestWithParam<Chain> {};

TEST_P(OtherOrder, IsRefused) {
  const Chain& chain = GetParam();
  Graph graph;
  ggml_tensor* rope = graph.rope(chain.n_heads, chain.n_tokens);
  ggml_tensor* node = graph.store(chain.rows(graph, rope));
  const auto store = read_cache_store(node);
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.status().code(), StatusCode::kUnsupported);
  for (const char* part : {"keys of layer 3", "ROPE", "another order", "--config-k exact"}) {
    EXPECT_NE(store.status().message().find(part), std::string::npos) << store.status().message();
  }
  graph.compute(node);
  EXPECT_NE(values_of(node->src[0]), heads_of(rope, chain.first_head));
}

INSTANTIATE_TEST_SUITE_P(Chains, OtherOrder, ::testing::ValuesIn(kMixed), chain_name);

// ---- What else stands above a store ----------------------------------------

class CacheStoreTest : public ::testing::Test {
 protected:
  ggml_context* get() { return graph_.get(); }

  void expect_refused(ggml_tensor* node, const std::vector<std::string>& parts) {
    const auto store = read_cache_store(node);
    ASSERT_FALSE(store.ok()) << parts.front();
    EXPECT_EQ(store.status().code(), StatusCode::kUnsupported);
    for (const std::string& part : parts) {
      EXPECT_NE(store.status().message().find(part), std::string::npos) << store.status().message();
    }
  }

  void expect_unrotated(ggml_tensor* rows, int head_dim) {
    const auto store = read_cache_store(graph_.store(rows));
    ASSERT_TRUE(store.ok()) << store.status().message();
    EXPECT_EQ(store->rotation, nullptr);
    EXPECT_EQ(store->head_dim, head_dim);
    EXPECT_EQ(store->rows, rows);
  }

  Graph graph_;
};

TEST_F(CacheStoreTest, WhatFollowsARotationIsRefused) {
  ggml_tensor* k = graph_.rope();
  ggml_tensor* part = graph_.projection();
  ggml_tensor* heads = ggml_reshape_3d(get(), part, kHeadDim, kHeads, kTokens);
  for (ggml_tensor* changed :
       {ggml_rms_norm(get(), k, 1e-6F), ggml_scale(get(), k, 2.0F), ggml_add(get(), heads, k),
        ggml_mul(get(), ggml_rms_norm(get(), k, 1e-6F), graph_.leaf(kHeadDim)),
        ggml_cont(get(), ggml_scale(get(), ggml_cont(get(), k), 2.0F))}) {
    expect_refused(graph_.store(graph_.rows_of(changed)),
                   {"keys of layer 3", "follows the rotary embedding", "--config-k exact"});
  }
}

// As in latent attention: a part of a head is rotated, and is not the first source.
TEST_F(CacheStoreTest, ARotatedPartOfAHeadIsRefused) {
  ggml_tensor* plain = ggml_reshape_3d(get(), graph_.projection(), kHeadDim, kHeads, kTokens);
  for (ggml_tensor* both :
       {ggml_concat(get(), plain, graph_.rope(), 0), ggml_concat(get(), graph_.rope(), plain, 0)}) {
    expect_refused(graph_.store(graph_.rows_of(both)), {"CONCAT", "follows the rotary embedding"});
  }
}

// As llama.cpp multiplies keys by a Hadamard matrix: no projection.
TEST_F(CacheStoreTest, AProductWithRotatedKeysIsRefused) {
  ggml_tensor* flat = ggml_reshape_2d(get(), graph_.rope(), kHeadDim, kHeads * kTokens);
  ggml_tensor* product = ggml_mul_mat(get(), graph_.leaf(kHeadDim, kHeadDim), flat);
  expect_refused(graph_.store(ggml_reshape_2d(get(), product, kChannels, kTokens)),
                 {"MUL_MAT", "follows the rotary embedding"});
}

TEST_F(CacheStoreTest, KeysOfUnknownOriginAreRefused) {
  ggml_tensor* copy = graph_.leaf(kHeadDim, kHeads, kTokens);
  ggml_set_name(copy, "GPU#k#0");
  expect_refused(graph_.store(graph_.rows_of(copy)), {"GPU#k#0", "does not show"});
}

TEST_F(CacheStoreTest, ALongWayToTheProjectionIsRefused) {
  ggml_tensor* k = ggml_reshape_3d(get(), graph_.projection(), kHeadDim, kHeads, kTokens);
  for (int i = 0; i < 60; i++) {
    k = ggml_scale(get(), k, 2.0F);
  }
  expect_unrotated(graph_.rows_of(k), kHeadDim);
  for (int i = 0; i < 5; i++) {
    k = ggml_scale(get(), k, 2.0F);
  }
  expect_refused(graph_.store(graph_.rows_of(k)), {"more than 64 operations"});
}

TEST_F(CacheStoreTest, RotationsThatCannotBeUndoneAreRefused) {
  ggml_tensor* k = graph_.rope();
  k->op_params[2] = GGML_ROPE_TYPE_VISION;
  expect_refused(graph_.store(graph_.rows_of(k)),
                 {"keys of layer 3", "mode 24", "--config-k exact"});
}

TEST_F(CacheStoreTest, RowsThatAreNoMatrixOfFloatsAreRefused) {
  for (const char* name : {"cache_k_l3", "cache_v_l3"}) {
    ggml_tensor* node = graph_.store(graph_.rows_of(graph_.rope()), name);
    node->src[0]->type = GGML_TYPE_F16;
    expect_refused(node, {"s of layer 3", "type f16", "want a matrix of f32"});
    node = graph_.store(graph_.rows_of(graph_.rope()), name);
    node->src[0]->nb[0] = 2 * sizeof(float);
    expect_refused(node, {"want a matrix of f32"});
    for (const int axis : {2, 3}) {
      node = graph_.store(graph_.rows_of(graph_.rope()), name);
      node->src[0]->ne[axis] = 2;
      expect_refused(node, {"want a matrix of f32"});
    }
  }
}

// Up to the projection; what is rotated above it belongs to other layers.
TEST_F(CacheStoreTest, KeysWithoutRotation) {
  const auto heads = [&](ggml_tensor* rows) {
    return ggml_reshape_3d(get(), rows, kHeadDim, kHeads, kTokens);
  };
  expect_unrotated(graph_.projection(), 0);
  expect_unrotated(graph_.rows_of(heads(graph_.projection())), kHeadDim);
  expect_unrotated(graph_.rows_of(ggml_rms_norm(get(), heads(graph_.projection()), 1e-6F)),
                   kHeadDim);
  ggml_tensor* below = ggml_add(get(), graph_.rows_of(graph_.rope()), graph_.leaf(kChannels));
  ggml_tensor* weight = graph_.leaf(kChannels, kChannels);
  expect_unrotated(graph_.rows_of(heads(ggml_mul_mat(get(), weight, below))), kHeadDim);
  ggml_tensor* experts = graph_.leaf(kChannels, kChannels, 2);
  ggml_tensor* ids = ggml_new_tensor_2d(get(), GGML_TYPE_I32, 1, kTokens);
  ggml_tensor* each = ggml_reshape_3d(get(), below, kChannels, 1, kTokens);
  expect_unrotated(graph_.rows_of(ggml_mul_mat_id(get(), experts, each, ids)), kChannels);
}

TEST_F(CacheStoreTest, ValuesAreTakenAsTheyCome) {
  for (ggml_tensor* rows :
       {graph_.rows_of(graph_.rope()), graph_.rows_of(graph_.leaf(kHeadDim, kHeads, kTokens)),
        graph_.rows_of(ggml_scale(get(), graph_.rope(), 2.0F))}) {
    const auto store = read_cache_store(graph_.store(rows, "cache_v_l0"));
    ASSERT_TRUE(store.ok()) << store.status().message();
    EXPECT_EQ(store->cache.kind, KvKind::kValue);
    EXPECT_EQ(store->rotation, nullptr);
    EXPECT_EQ(store->head_dim, kHeadDim);
  }
}

TEST_F(CacheStoreTest, OnlyStoresIntoAttentionCachesCount) {
  ggml_tensor* rows = graph_.rows_of(graph_.rope());
  const auto key = stored_cache(graph_.store(rows));
  ASSERT_TRUE(key);
  EXPECT_EQ(key->kind, KvKind::kKey);
  EXPECT_EQ(key->layer, 3);
  EXPECT_FALSE(stored_cache(graph_.store(rows, "cache_r_l3")));
  EXPECT_FALSE(stored_cache(rows));
  // A store into a view, as of a cache of several streams.
  ggml_tensor* cache = ggml_new_tensor_3d(get(), GGML_TYPE_F16, kChannels, 32, 2);
  ggml_set_name(cache, "cache_v_l7");
  ggml_tensor* cells = ggml_new_tensor_1d(get(), GGML_TYPE_I64, kTokens);
  const auto value =
      stored_cache(ggml_set_rows(get(), ggml_reshape_2d(get(), cache, kChannels, 64), rows, cells));
  ASSERT_TRUE(value);
  EXPECT_EQ(value->kind, KvKind::kValue);
  EXPECT_EQ(value->layer, 7);
}

}  // namespace
}  // namespace cqkv
