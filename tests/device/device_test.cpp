// The device through ggml's scheduler, on graphs of the shape that llama.cpp
// builds: that coded attention is what the codec says, that nothing depends on how
// tokens are batched, and that whatever cannot be served is refused with a reason.
// Not here: kernels (tests/attention), whole programs (tests/e2e).
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "device/device_fixture.h"
#include "support/codebooks.h"

namespace cqkv::device {
namespace {

constexpr CodecSpec k1Bit{8, 8};
constexpr CodecSpec k2Bit{4, 8};
constexpr CodecSpec kExact{};

void expect_same(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_FALSE(got.empty()) << Backend::get().last_error();
  ASSERT_EQ(got, want);
}

// The result of the same rows in a plain cache, whose operations ggml's CPU backend runs.
std::vector<float> plain_result(const CacheShape& shape, const Tokens& tokens) {
  EXPECT_EQ(Backend::get().set_codebook(""), "");
  TestCache cache(shape);
  return cache.evaluate(tokens);
}

TEST(Device, LoadsAndNamesItself) {
  ASSERT_NE(Backend::get().registry, nullptr);
  EXPECT_STREQ(ggml_backend_dev_name(Backend::get().device), "CQ0");
  EXPECT_EQ(ggml_backend_dev_type(Backend::get().device), GGML_BACKEND_DEVICE_TYPE_GPU);
  ggml_backend_dev_props props;
  ggml_backend_dev_get_props(Backend::get().device, &props);
  EXPECT_TRUE(props.caps.mmap_support) << "or the host reads its weights instead of mapping them";
}

TEST(Device, ComputesNothingButTheCache) {
  const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 8, nullptr, true}));
  ggml_tensor* weight = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 64, 64);
  ggml_tensor* x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 64, 4);
  EXPECT_FALSE(
      ggml_backend_dev_supports_op(Backend::get().device, ggml_mul_mat(context.get(), weight, x)));
  EXPECT_FALSE(ggml_backend_dev_supports_op(Backend::get().device, ggml_add(context.get(), x, x)));
}

TEST(Device, CodedBufferIsSmallerThanNominal) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k2Bit, shape.n_kv_heads, shape.head_dim, 1),
               "size");
  const TestCache cache(shape);
  ASSERT_TRUE(cache.ok());
  const std::size_t channels = 128;
  const std::size_t codes = shape.n_layers * 256 * (channels / 8 + channels / 4);
  EXPECT_EQ(cache.buffer_size(), codes + 256 * sizeof(std::int32_t));
  EXPECT_EQ(Backend::get().cache_bytes(), cache.buffer_size());
  EXPECT_LT(cache.buffer_size(), shape.n_layers * 2 * 256 * channels * 2);
}

// A codebook whose centroids are the rows themselves loses nothing: attention on
// codes must then be attention on the rows, which only rounding separates.
TEST(Device, LosslessCodebookGivesExactAttention) {
  for (const int rope_mode : {0, 2}) {
    CacheShape shape;
    shape.rope_mode = rope_mode;
    const Tokens tokens = run_of_tokens(0, 16);
    const std::vector<float> want = plain_result(shape, tokens);
    // 4096 levels a channel, here a fine grid of +-5.
    Codebook grid;
    const TensorCodebook levels = testing::grid_tensor(shape.n_kv_heads, shape.head_dim, 5.0F);
    grid.layers.assign(static_cast<std::size_t>(shape.n_layers), {{levels}, {levels}});
    use_codebook(grid, "grid");
    TestCache cache(shape);
    ASSERT_TRUE(cache.ok());
    // A step of 1/400 has an error of 7e-4 rms; the plain cache rounds to 16 bits.
    EXPECT_LT(relative_distance(cache.evaluate(tokens), want), 3e-3) << "mode " << rope_mode;
  }
}

TEST(Device, UncodedModeIsTheHostsOwnAttention) {
  const CacheShape shape;
  const Tokens tokens = run_of_tokens(0, 40);
  const std::vector<float> one = plain_result(shape, tokens);
  ASSERT_FALSE(one.empty());
  // The same graph on the CPU alone, caches in host memory.
  CacheShape other = shape;
  other.n_layers = 1;
  const std::vector<float> first_layer = plain_result(other, tokens);
  ASSERT_EQ(std::vector<float>(one.begin(), one.begin() + first_layer.size()), first_layer);
}

class BatchInvariance : public ::testing::TestWithParam<std::pair<CodecSpec, CodecSpec>> {};

TEST_P(BatchInvariance, DoesNotDependOnBatchesOrThreads) {
  const CacheShape shape;
  const auto [k, v] = GetParam();
  use_codebook(random_codebook(shape.n_layers, k, v, shape.n_kv_heads, shape.head_dim, 2), "batch");
  expect_batches_do_not_matter(shape, 200);
}

INSTANTIATE_TEST_SUITE_P(Configs, BatchInvariance,
                         ::testing::Values(std::pair{k1Bit, k1Bit}, std::pair{k2Bit, k1Bit},
                                           std::pair{CodecSpec{8, 10}, CodecSpec{2, 4}}));

TEST(Device, OneSideMayBeExact) {
  const CacheShape shape;
  const Tokens tokens = run_of_tokens(0, 70);
  const std::vector<float> plain = plain_result(shape, tokens);
  for (const auto& [k, v] : {std::pair{k2Bit, kExact}, std::pair{kExact, k2Bit}}) {
    use_codebook(random_codebook(shape.n_layers, k, v, shape.n_kv_heads, shape.head_dim, 3),
                 "half");
    TestCache cache(shape);
    ASSERT_TRUE(cache.ok()) << Backend::get().last_error();
    const std::vector<float> got = cache.evaluate(tokens);
    ASSERT_FALSE(got.empty()) << Backend::get().last_error();
    const double distance = relative_distance(got, plain);
    EXPECT_GT(distance, 1e-3) << "one side is coded";
    EXPECT_LT(distance, 1.5);
  }
}

TEST(Device, StreamsAreIndependentAndCopied) {
  CacheShape shape;
  shape.n_streams = 2;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 4),
               "streams");
  CacheShape single = shape;
  single.n_streams = 1;
  TestCache alone(single);
  alone.evaluate(run_of_tokens(0, 50));
  const std::vector<float> want = alone.evaluate(run_of_tokens(50, 3));

  TestCache cache(shape);
  cache.evaluate(run_of_tokens(0, 50));
  cache.evaluate(moved(run_of_tokens(0, 80, 99), shape.n_cells), 1);  // other rows in stream 1
  cache.copy_stream(0, 1);
  expect_same(cache.evaluate(moved(run_of_tokens(50, 3), shape.n_cells), 1), want);
  expect_same(cache.evaluate(run_of_tokens(50, 3), 0), want);
}

TEST(Device, SavedRowsRestoreIntoOtherCells) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k2Bit, shape.n_kv_heads, shape.head_dim, 5),
               "save");
  TestCache original(shape);
  original.evaluate(run_of_tokens(0, 64));
  TestCache restored(shape);
  restore_all(original, 64, restored, 64);
  const std::vector<float> want = original.evaluate(run_of_tokens(64, 4));
  // Both in whole blocks, so that not even the order of sums differs.
  expect_same(restored.evaluate(moved(run_of_tokens(64, 4), 64)), want);
}

TEST(Device, StateOfAnotherCodebookIsRefusedWhenUsed) {
  const CacheShape shape;
  const auto book = [&](std::uint64_t seed) {
    return random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, seed);
  };
  use_codebook(book(6), "one");
  TestCache original(shape);
  original.evaluate(run_of_tokens(0, 8));
  const std::vector<std::uint8_t> rows = original.save(KvKind::kKey, 0, 0, 8);
  use_codebook(book(7), "other");
  TestCache cache(shape);
  cache.evaluate(run_of_tokens(0, 8));
  cache.restore(KvKind::kKey, 0, 0, rows);
  EXPECT_NE(Backend::get().last_error().find("codebook"), std::string::npos);
  EXPECT_TRUE(cache.evaluate(run_of_tokens(8, 1)).empty());
  EXPECT_NE(Backend::get().last_error().find("process the prompt again"), std::string::npos);
  cache.clear();
  EXPECT_FALSE(cache.evaluate(run_of_tokens(0, 8)).empty()) << "a cleared cache works again";
}

TEST(Device, PlainStateIsRefusedAndEmptyRowsAreEmpty) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 8),
               "plain");
  TestCache cache(shape);
  cache.evaluate(run_of_tokens(0, 4));
  const std::vector<std::uint8_t> empty = cache.save(KvKind::kKey, 0, 4, 1);
  EXPECT_EQ(empty, std::vector<std::uint8_t>(256, 0));
  std::vector<std::uint8_t> data(256, 0x3C);
  cache.restore(KvKind::kValue, 1, 3, data);
  EXPECT_TRUE(cache.evaluate(run_of_tokens(4, 1)).empty());
}

TEST(Device, ShiftMovesPositionsOnly) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 9),
               "shift");
  // Rows depend on seed and position; so store at shifted positions with rows of the
  // original ones by shifting there and back.
  TestCache straight(shape);
  straight.evaluate(run_of_tokens(0, 100));
  TestCache shifted(shape);
  shifted.evaluate(run_of_tokens(0, 100));
  std::vector<std::int32_t> up(256, 0);
  std::fill(up.begin(), up.begin() + 100, 1000);
  ASSERT_TRUE(shifted.shift(up));
  for (auto& amount : up) {
    amount = -amount;
  }
  ASSERT_TRUE(shifted.shift(up));
  EXPECT_EQ(shifted.save(KvKind::kKey, 1, 0, 100), straight.save(KvKind::kKey, 1, 0, 100));
  expect_same(shifted.evaluate(run_of_tokens(100, 2)), straight.evaluate(run_of_tokens(100, 2)));
}

// Nothing was stored in the restored cache, so no layer has read positions yet; the
// shift must still count once and not once a layer.
TEST(Device, ShiftOfARestoredStateCountsOnce) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 15),
               "restored_shift");
  TestCache original(shape);
  original.evaluate(run_of_tokens(0, 64));
  TestCache restored(shape);
  restore_all(original, 64, restored, 0);
  const std::vector<std::int32_t> amount(256, 7);
  ASSERT_TRUE(restored.shift(amount));
  ASSERT_TRUE(original.shift(amount));
  Tokens next = run_of_tokens(71, 2);
  next.cells = {64, 65};
  expect_same(restored.evaluate(next), original.evaluate(next));
}

// What RoPE promises: only differences of positions matter, so shifting all tokens and the
// queries alike changes nothing but rounding: in floats that of angles; in bytes, by multiples of
// 64, that of queries too, after which a probability may be one of 127 more or less (0.002), and
// else of all probabilities, since blocks of other tokens have other largest ones. (A query that is
// one position off gives 0.22.)
TEST(Device, ShiftKeepsRelativePositions) {
  CacheShape shape;
  shape.n_layers = 1;
  const Codebook codebook = random_codebook(1, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 10);
  const auto result = [&](int offset) {
    TestCache cache(shape);
    cache.evaluate(run_of_tokens(0, 100));
    EXPECT_TRUE(cache.shift(std::vector<std::int32_t>(256, offset)));
    Tokens query = run_of_tokens(100, 1);
    query.row_ids = query.positions;
    query.positions[0] += offset;
    return cache.evaluate(query);
  };
  for (const bool bytes : {false, true}) {
    Backend::get().use_byte_tables(bytes);
    use_codebook(codebook, bytes ? "relative" : "relative_floats");
    const std::vector<float> want = result(0);
    ASSERT_FALSE(want.empty());
    EXPECT_LT(relative_distance(result(64), want), 1e-3);
    EXPECT_LT(relative_distance(result(1024), want), bytes ? 0.005 : 1e-3)
        << "f32 angles of ggml's query";
    EXPECT_LT(relative_distance(result(37), want), bytes ? 0.02 : 1e-3);
    EXPECT_LT(relative_distance(result(1000), want), bytes ? 0.02 : 1e-3);
  }
}

// In a unified cache, taking turns with another sequence, or behind it.
TEST(Device, CellsThatHoldASequenceDoNotMatter) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 16),
               "cells");
  TestCache alone(shape);
  alone.evaluate(run_of_tokens(0, 80));
  const std::vector<float> want = alone.evaluate(run_of_tokens(80, 2));
  for (const bool turns : {true, false}) {
    const auto place = [&](Tokens tokens, int sequence) {
      tokens.sequence = sequence;
      for (std::int64_t& cell : tokens.cells) {
        cell = turns ? 2 * cell + sequence : cell + 101 * sequence;
      }
      return tokens;
    };
    TestCache unified(shape);
    unified.evaluate(place(run_of_tokens(0, 100, 7), 0));
    unified.evaluate(place(run_of_tokens(0, 80), 1));
    expect_same(unified.evaluate(place(run_of_tokens(80, 2), 1)), want);
  }
}

// Without rotated keys that are coded the device does not know positions; then cells stand in the
// order that they have, as they do at the positions 0, 1, 2, ... where these are known.
TEST(Device, UnknownPositionsAreNoPosition) {
  const CacheShape shape;
  const auto layer_1 = [&](bool known) {
    Codebook codebook =
        random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 17);
    codebook.layers[1].k.clear();
    if (!known) {
      codebook.layers[0].k.clear();
    }
    use_codebook(codebook, known ? "known" : "unknown");
    TestCache cache(shape);
    const std::vector<float> all = cache.evaluate(run_of_tokens(0, 200));
    return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
  };
  const std::vector<float> known = layer_1(true);
  ASSERT_FALSE(known.empty());
  expect_same(layer_1(false), known);
}

TEST(Device, RefusesWhatItCannotServe) {
  const auto refused = [](CacheShape shape, const std::string& want) {
    use_codebook(
        random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 11),
        "refuse");
    TestCache cache(shape);
    ASSERT_TRUE(cache.ok());
    EXPECT_TRUE(cache.evaluate(run_of_tokens(0, 4)).empty());
    EXPECT_FALSE(cache.planned());
    EXPECT_NE(Backend::get().last_error().find(want), std::string::npos)
        << "got: " << Backend::get().last_error();
    // A refusal of one graph must not stick to the next.
    CacheShape fine;
    TestCache next(fine);
    EXPECT_FALSE(next.evaluate(run_of_tokens(0, 4)).empty());
  };
  CacheShape shape;
  shape.max_bias = 8.0F;
  refused(shape, "ALiBi");
  shape = {};
  shape.flash_attention = false;
  refused(shape, "-fa on");
  shape = {};
  shape.rope_mode = GGML_ROPE_TYPE_VISION;
  refused(shape, "mode 24");
  shape = {};
  shape.norm_after_rope = true;
  refused(shape, "follows the rotary embedding");
}

// llama.cpp's -fit, its default, plans graphs over caches that have a buffer of no bytes, which
// ggml makes without asking the device. It asks the sizes of the caches afterwards.
TEST(Device, DryRunsArePlanned) {
  const CacheShape shape;
  const std::int64_t n_channels = static_cast<std::int64_t>(shape.n_kv_heads) * shape.head_dim;
  const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(Backend::get().device);
  const auto plan = [&](ggml_type cache_type, std::size_t want_bytes) {
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    ggml_context* c = context.get();
    const ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(type, 0));
    const ggml_context_ptr caches(ggml_init({ggml_tensor_overhead() * 2, nullptr, true}));
    ggml_tensor* k = ggml_new_tensor_3d(caches.get(), cache_type, n_channels, 256, 1);
    ggml_tensor* v = ggml_new_tensor_3d(caches.get(), cache_type, n_channels, 256, 1);
    ggml_set_name(k, "cache_k_l0");
    ggml_set_name(v, "cache_v_l0");
    k->buffer = buffer.get();
    v->buffer = buffer.get();
    const auto heads = [&](ggml_tensor* cache) {
      return ggml_permute(
          c,
          ggml_view_4d(c, cache, shape.head_dim, shape.n_kv_heads, 256, 1,
                       cache->nb[1] / shape.n_kv_heads, cache->nb[1], cache->nb[2], 0),
          0, 2, 1, 3);
    };
    ggml_tensor* rows = ggml_new_tensor_2d(c, GGML_TYPE_F32, n_channels, 1);
    ggml_tensor* cells = ggml_new_tensor_1d(c, GGML_TYPE_I64, 1);
    ggml_tensor* q = ggml_new_tensor_4d(c, GGML_TYPE_F32, shape.head_dim, 1, shape.n_heads, 1);
    ggml_tensor* shift = ggml_new_tensor_1d(c, GGML_TYPE_I32, 256);
    for (const ggml_tensor* node :
         {ggml_set_rows(c, k, rows, cells), heads(k), ggml_mul_mat(c, heads(k), q),
          ggml_flash_attn_ext(c, q, heads(k), heads(v), nullptr, 1.0F, 0.0F, 0.0F),
          ggml_rope_inplace(c,
                            ggml_view_3d(c, k, shape.head_dim, shape.n_kv_heads, 256,
                                         k->nb[1] / shape.n_kv_heads, k->nb[1], 0),
                            shift, shape.head_dim, 0)}) {
      EXPECT_TRUE(ggml_backend_dev_supports_op(Backend::get().device, node)) << node->name;
    }
    EXPECT_EQ(ggml_backend_alloc_ctx_tensors_from_buft_size(caches.get(), type), want_bytes);
  };
  const auto nominal = static_cast<std::size_t>(2 * 2 * 256 * n_channels);
  EXPECT_EQ(Backend::get().set_codebook(""), "");
  plan(GGML_TYPE_F16, nominal);
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 20),
               "dry");
  plan(GGML_TYPE_F16, nominal / 16);
  plan(GGML_TYPE_Q8_0, nominal / 64 * 34);
  TestCache next(shape);
  EXPECT_FALSE(next.evaluate(run_of_tokens(0, 4)).empty()) << "a dry run must refuse nothing";
}

TEST(Device, SectionsServeTextAndRefuseImages) {
  CacheShape shape;
  shape.rope_mode = GGML_ROPE_TYPE_MROPE;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 15),
               "sections");
  TestCache other(shape);
  const std::vector<float> before = other.evaluate(run_of_tokens(0, 100));
  const std::vector<float> want = other.evaluate(run_of_tokens(100, 9));
  ASSERT_FALSE(want.empty());
  TestCache cache(shape);
  EXPECT_EQ(cache.evaluate(run_of_tokens(0, 100)), before);
  Tokens image = run_of_tokens(100, 9);
  image.image = true;
  EXPECT_TRUE(cache.evaluate(image).empty());
  EXPECT_TRUE(cache.planned());  // it shows when positions come
  EXPECT_NE(Backend::get().last_error().find("several positions"), std::string::npos)
      << Backend::get().last_error();
  // Text goes on where the image was.
  EXPECT_EQ(cache.evaluate(run_of_tokens(100, 9)), want);
}

TEST(Device, RefusesQuantizedCacheTypes) {
  CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, shape.n_kv_heads, shape.head_dim, 12),
               "type");
  shape.type = GGML_TYPE_Q8_0;
  const TestCache cache(shape);
  EXPECT_FALSE(cache.ok());
  EXPECT_NE(Backend::get().last_error().find("q8_0, want f16"), std::string::npos);
}

TEST(Device, HeadSizeOfAnotherModelIsRefused) {
  CacheShape shape;  // 2 heads of 64; the codebook has the same width, 4 heads of 32
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, 4, 32, 13), "heads");
  TestCache cache(shape);
  EXPECT_TRUE(cache.evaluate(run_of_tokens(0, 2)).empty());
  EXPECT_NE(Backend::get().last_error().find("head size 32, the model's is 64"), std::string::npos)
      << Backend::get().last_error();
}

TEST(Device, CodebookOfAnotherShapeIsNotUsed) {
  const CacheShape shape;
  use_codebook(random_codebook(shape.n_layers, k1Bit, k1Bit, 3, 64, 14), "shape");
  TestCache cache(shape);
  EXPECT_EQ(cache.buffer_size(), shape.n_layers * 2 * 256 * 256U);
  EXPECT_EQ(cache.evaluate(run_of_tokens(0, 9)), plain_result(shape, run_of_tokens(0, 9)));
}

// As llama.cpp's RPC server does it: a buffer of bytes, whose tensors the device is never told of.
TEST(Device, CachesThatWereNeverPlacedAreReported) {
  use_codebook(random_codebook(1, {8, 8}, {8, 8}, 2, 64, 1), "unplaced.gguf");
  const auto store_into = [](const char* name) {
    const ggml_context_ptr context(ggml_init({1 << 18, nullptr, true}));
    ggml_tensor* cache = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 128, 64);
    ggml_set_name(cache, name);
    ggml_tensor* rows = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 128, 2);
    ggml_tensor* cells = ggml_new_tensor_1d(context.get(), GGML_TYPE_I64, 2);
    ggml_tensor* stored = ggml_set_rows(context.get(), cache, rows, cells);
    const ggml_backend_ptr backend(ggml_backend_dev_init(Backend::get().device, nullptr));
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_alloc_buffer(backend.get(), std::size_t{1} << 16U));
    auto* base = static_cast<char*>(ggml_backend_buffer_get_base(buffer.get()));
    const auto place = [&](ggml_tensor* tensor, std::size_t offset) {
      tensor->buffer = buffer.get();
      tensor->data = base + offset;
    };
    place(cache, 0);
    place(stored, 0);
    place(rows, 32768);
    place(cells, 49152);
    std::memset(base, 0, std::size_t{1} << 16U);
    ggml_cgraph* graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, stored);
    EXPECT_EQ(ggml_backend_graph_compute(backend.get(), graph), GGML_STATUS_SUCCESS);
    return Backend::get().last_error();
  };
  EXPECT_EQ(store_into("cache_k_l7"), "");  // no layer of the codebook
  const std::string error = store_into("cache_k_l0");
  EXPECT_NE(error.find("cache_k_l0 was written here without having been placed"), std::string::npos)
      << error;
  EXPECT_NE(error.find("NOT coded"), std::string::npos);
}

TEST(Device, MissingOrBrokenCodebookIsAnError) {
  EXPECT_NE(Backend::get().set_codebook("/nonexistent/book.gguf"), "");
  EXPECT_EQ(Backend::get().set_codebook(""), "");
}

}  // namespace
}  // namespace cqkv::device
