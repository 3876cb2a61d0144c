// Damaged and hostile codebook files: reading one is an error, or, where the damage
// hit a name or the provenance only, gives the same codebook. Never a crash: run under
// the asan preset, which also refuses absurd allocations.
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>

#include <ggml.h>
#include <gguf.h>
#include <gtest/gtest.h>

#include "cqkv/codebook_file.h"

#include "codebook/byte_centroids.h"
#include "core/rng.h"
#include "support/codebooks.h"
#include "support/temp_folder.h"

namespace cqkv {
namespace {

using testing::random_codebook;
using testing::TempFolder;

class HostileFile : public ::testing::Test {
 protected:
  void SetUp() override {
    codebook = random_codebook(2, {4, 4}, {2, 3}, 2, 16);
    codebook.layers[1].k = {
        testing::with_basis(testing::random_mixed_tensor(4, {2, 0}, 16, 5), KvKind::kKey, 1)};
    codebook.layers[1].v = {testing::with_basis(codebook.layers[1].v.front(), KvKind::kValue, 2)};
    codebook.layers[0].v = {rounded_to_bytes(codebook.layers[0].v.front()).value()};
    ASSERT_TRUE(write_codebook(codebook, path()).ok());
    std::ifstream in(path(), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
    gguf_context* header = gguf_init_from_file(path().c_str(), {true, nullptr});
    ASSERT_NE(header, nullptr);
    header_bytes = gguf_get_data_offset(header);
    gguf_free(header);
  }

  std::string path() const { return folder.file("a.gguf"); }

  Result<Codebook> read(const std::string& damaged) const {
    std::ofstream(path(), std::ios::binary | std::ios::trunc) << damaged;
    return read_codebook(path());
  }

  void expect_error(const std::string& damaged, const std::string& what) const {
    const auto result = read(damaged);
    ASSERT_FALSE(result.ok()) << what;
    EXPECT_EQ(result.status().message().rfind(path(), 0), 0U) << result.status().message();
  }

  // Damage may hit a name only; the centroids must then be untouched.
  void expect_error_or_same(const std::string& damaged, const std::string& what) const {
    const auto result = read(damaged);
    if (result.ok()) {
      EXPECT_EQ(result->identity(), codebook.identity()) << what;
    }
  }

  // Writes the good file again after `change` of its keys, with `tensor` in place of
  // the one of the same name or at the end, and reads that.
  Result<Codebook> read_changed(const std::function<void(gguf_context*)>& change,
                                const ggml_tensor* tensor = nullptr) {
    const std::string good = folder.file("good.gguf");
    const std::string changed = folder.file("changed.gguf");
    std::ofstream(good, std::ios::binary | std::ios::trunc) << bytes;
    ggml_context* tensors = nullptr;
    gguf_context* header = gguf_init_from_file(good.c_str(), {false, &tensors});
    gguf_context* copy = gguf_init_empty();
    gguf_set_kv(copy, header);
    change(copy);
    for (std::int64_t i = 0; i < gguf_get_n_tensors(header); i++) {
      const char* name = gguf_get_tensor_name(header, i);
      const bool replace = tensor != nullptr && std::strcmp(name, tensor->name) == 0;
      gguf_add_tensor(copy, replace ? tensor : ggml_get_tensor(tensors, name));
    }
    if (tensor != nullptr && gguf_find_tensor(copy, tensor->name) < 0) {
      gguf_add_tensor(copy, tensor);
    }
    gguf_write_to_file(copy, changed.c_str(), false);
    gguf_free(copy);
    gguf_free(header);
    ggml_free(tensors);
    return read_codebook(changed);
  }

  // A tensor of zeros with a row for each of some heads, and what reading it says.
  struct WrongPart {
    const char* name;
    ggml_type type;
    std::int64_t head_dim;
    std::int64_t n_heads;
    const char* says;
  };

  void expect_corrupt(const WrongPart& wrong) {
    std::vector<char> zeros(static_cast<std::size_t>(wrong.head_dim * wrong.n_heads) * 4);
    ggml_context* own = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
    ggml_tensor* tensor = ggml_new_tensor_2d(own, wrong.type, wrong.head_dim, wrong.n_heads);
    tensor->data = zeros.data();
    ggml_set_name(tensor, wrong.name);
    const auto result = read_changed([](gguf_context*) {}, tensor);
    EXPECT_EQ(result.status().code(), StatusCode::kCorrupt) << wrong.name;
    EXPECT_NE(result.status().message().find(wrong.says), std::string::npos)
        << result.status().message();
    ggml_free(own);
  }

  TempFolder folder;
  Codebook codebook;
  std::string bytes;
  std::size_t header_bytes = 0;
};

TEST_F(HostileFile, TruncatedAtEveryByte) {
  for (std::size_t n = 0; n < bytes.size(); n++) {
    expect_error(bytes.substr(0, n), "truncated to " + std::to_string(n));
  }
}

TEST_F(HostileFile, EveryHeaderByteAtItsExtremes) {
  for (std::size_t i = 0; i < header_bytes; i++) {
    for (const int value : {0x00, 0x01, 0x7F, 0x80, 0xFF, bytes[i] ^ 0x01, bytes[i] ^ 0x80}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(value);
      expect_error_or_same(damaged, "byte " + std::to_string(i));
    }
  }
}

// Every aligned and unaligned 64-bit field is among these.
TEST_F(HostileFile, EveryEightHeaderBytesAtTheirExtremes) {
  const std::uint64_t extremes[] = {0,
                                    std::numeric_limits<std::uint64_t>::max(),
                                    std::uint64_t{1} << 63,
                                    std::numeric_limits<std::int64_t>::max(),
                                    std::uint64_t{1} << 32,
                                    std::uint64_t{1} << 40,
                                    (std::uint64_t{1} << 30) - 1};
  for (std::size_t i = 0; i + 8 <= header_bytes; i++) {
    for (const std::uint64_t value : extremes) {
      std::string damaged = bytes;
      std::memcpy(damaged.data() + i, &value, sizeof(value));
      expect_error_or_same(damaged, "8 bytes at " + std::to_string(i));
    }
  }
}

TEST_F(HostileFile, RandomFlips) {
  for (std::uint64_t seed = 0; seed < 5000; seed++) {
    Rng rng(seed);
    std::string damaged = bytes;
    const std::uint64_t n_flips = 1 + rng.below(8);
    for (std::uint64_t i = 0; i < n_flips; i++) {
      const std::size_t at = rng.below(rng.below(2) == 0 ? header_bytes : damaged.size());
      damaged[at] = static_cast<char>(damaged[at] ^ (1U << rng.below(8)));
    }
    expect_error_or_same(damaged, "seed " + std::to_string(seed));
  }
}

TEST_F(HostileFile, EveryDataByteIsGuardedByTheIdentity) {
  for (std::size_t i = header_bytes; i < bytes.size(); i++) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x01);
    expect_error(damaged, "byte " + std::to_string(i));
  }
}

TEST_F(HostileFile, NotAFileOfOurs) {
  expect_error("", "empty");
  expect_error("GGUF", "magic alone");
  expect_error("GGML" + bytes.substr(4), "wrong magic");
  expect_error(std::string(100000, '\0'), "zeros");
  expect_error(std::string(100000, '\xFF'), "ones");
  for (const char version : {'\0', '\1', '\4'}) {
    std::string damaged = bytes;
    damaged[4] = version;
    expect_error(damaged, "GGUF version");
  }
}

using Setter = std::function<void(gguf_context*, const char*)>;

std::vector<std::pair<gguf_type, Setter>> scalar_setters() {
  return {
      {GGUF_TYPE_UINT8, [](gguf_context* c, const char* k) { gguf_set_val_u8(c, k, 1); }},
      {GGUF_TYPE_INT16, [](gguf_context* c, const char* k) { gguf_set_val_i16(c, k, 1); }},
      {GGUF_TYPE_UINT32, [](gguf_context* c, const char* k) { gguf_set_val_u32(c, k, 1); }},
      {GGUF_TYPE_INT32, [](gguf_context* c, const char* k) { gguf_set_val_i32(c, k, 1); }},
      {GGUF_TYPE_FLOAT32, [](gguf_context* c, const char* k) { gguf_set_val_f32(c, k, 1); }},
      {GGUF_TYPE_UINT64, [](gguf_context* c, const char* k) { gguf_set_val_u64(c, k, 1); }},
      {GGUF_TYPE_BOOL, [](gguf_context* c, const char* k) { gguf_set_val_bool(c, k, true); }},
      {GGUF_TYPE_STRING, [](gguf_context* c, const char* k) { gguf_set_val_str(c, k, "x"); }},
  };
}

void set_array(gguf_context* context, const char* key, gguf_type type, std::size_t n) {
  const std::vector<std::uint64_t> zeros(n);
  std::vector<const char*> strings(n, "x");
  if (type == GGUF_TYPE_STRING) {
    gguf_set_arr_str(context, key, strings.data(), n);
  } else {
    gguf_set_arr_data(context, key, type, zeros.data(), n);
  }
}

// Keys that the reader may do without or does not read.
bool optional(const std::string& key) {
  return key.rfind("general.", 0) == 0 && key != "general.type" && key != "general.architecture";
}

std::vector<std::string> all_keys(const std::string& path) {
  gguf_context* header = gguf_init_from_file(path.c_str(), {true, nullptr});
  std::vector<std::string> keys;
  for (std::int64_t i = 0; i < gguf_get_n_kv(header); i++) {
    keys.emplace_back(gguf_get_key(header, i));
  }
  gguf_free(header);
  return keys;
}

TEST_F(HostileFile, WrongTypeForEveryKey) {
  for (const auto& key : all_keys(path())) {
    gguf_context* header = gguf_init_from_file(path().c_str(), {true, nullptr});
    const gguf_type good = gguf_get_kv_type(header, gguf_find_key(header, key.c_str()));
    gguf_free(header);
    for (const auto& [type, set] : scalar_setters()) {
      const auto& setter = set;
      const auto result =
          read_changed([&](gguf_context* changed) { setter(changed, key.c_str()); });
      EXPECT_TRUE(!result.ok() || optional(key) || type == good) << key << " type " << type;
    }
  }
}

// An array where a scalar, another array or another length belongs.
TEST_F(HostileFile, WrongArrayForEveryKey) {
  constexpr gguf_type kTypes[] = {GGUF_TYPE_UINT8, GGUF_TYPE_UINT32, GGUF_TYPE_UINT64,
                                  GGUF_TYPE_FLOAT64, GGUF_TYPE_STRING};
  for (const auto& key : all_keys(path())) {
    for (int i = 0; i < 15; i++) {
      const gguf_type type = kTypes[i % 5];
      const std::size_t n = 3U * static_cast<unsigned>(i / 5);
      const auto result =
          read_changed([&](gguf_context* changed) { set_array(changed, key.c_str(), type, n); });
      const bool harmless =
          (key == "kv_codebook.datasets" && type == GGUF_TYPE_STRING) ||
          (key == "kv_codebook.model_fingerprint" && type == GGUF_TYPE_UINT64 && n == 0);
      EXPECT_TRUE(!result.ok() || optional(key) || harmless)
          << key << ": " << n << " of type " << type;
    }
  }
}

TEST_F(HostileFile, EveryKeyMissing) {
  for (const auto& key : all_keys(path())) {
    const auto result =
        read_changed([&](gguf_context* changed) { gguf_remove_key(changed, key.c_str()); });
    EXPECT_EQ(result.ok(), optional(key)) << key;
  }
}

TEST_F(HostileFile, LayerCountsDisagree) {
  for (const char* key : {"kv_codebook.k.group_dim", "kv_codebook.k.code_bits",
                          "kv_codebook.v.group_dim", "kv_codebook.v.code_bits"}) {
    for (const std::size_t n : {0U, 1U, 3U, 5000U}) {
      const std::vector<std::uint32_t> fours(n, 4);
      const auto result = read_changed([&](gguf_context* changed) {
        gguf_set_arr_data(changed, key, GGUF_TYPE_UINT32, fours.data(), n);
      });
      EXPECT_FALSE(result.ok()) << key << " " << n;
    }
  }
}

TEST_F(HostileFile, WrongSpecs) {
  for (const std::uint32_t value : {0U, 1U, 3U, 5U, 13U, 17U, 0x80000000U, 0xFFFFFFFFU}) {
    for (const char* key : {"kv_codebook.k.group_dim", "kv_codebook.k.code_bits"}) {
      const std::vector<std::uint32_t> values(2, value);
      const auto result = read_changed([&](gguf_context* changed) {
        gguf_set_arr_data(changed, key, GGUF_TYPE_UINT32, values.data(), 2);
      });
      EXPECT_FALSE(result.ok()) << key << " " << value;
    }
  }
}

// A tensor of another shape or type under a good name.
TEST_F(HostileFile, WrongShapesAndTypes) {
  const std::vector<std::vector<std::int64_t>> shapes = {
      {4, 16, 4, 1},    {4, 16, 2, 2}, {4, 8, 4, 2},  {2, 16, 4, 2},
      {8, 16, 4, 2},    {4, 16, 3, 2}, {4, 16, 1, 1}, {4, 16, 4096, 1},
      {4, 16, 1, 5000}, {16, 4, 4, 2}, {1, 1, 1, 1},  {512, 1, 1, 1}};
  for (const auto& shape : shapes) {
    for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_I8}) {
      std::vector<char> zeros(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]) *
                              4);
      ggml_context* own = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
      ggml_tensor* tensor = ggml_new_tensor(own, type, 4, shape.data());
      tensor->data = zeros.data();
      ggml_set_name(tensor, "blk.0.attn_k.codebook");
      EXPECT_FALSE(read_changed([](gguf_context*) {}, tensor).ok())
          << shape[0] << " " << shape[1] << " " << shape[2] << " " << shape[3] << " " << type;
      ggml_free(own);
    }
  }
}

// Parts of bases of another size or type, and where none belongs.
TEST_F(HostileFile, WrongBases) {
  struct Case {
    const char* name;
    ggml_type type;
    std::int64_t size;
  };

  // Layer 1 has 2 heads of 16 channels, keys in groups of 2 and 8.
  constexpr Case kCases[] = {
      {"blk.1.attn_k.order", GGML_TYPE_I16, 31},     {"blk.1.attn_k.order", GGML_TYPE_I16, 32},
      {"blk.1.attn_k.order", GGML_TYPE_F16, 32},     {"blk.1.attn_k.order", GGML_TYPE_I32, 32},
      {"blk.1.attn_k.metric", GGML_TYPE_F16, 161},   {"blk.1.attn_k.metric", GGML_TYPE_BF16, 160},
      {"blk.1.attn_k.metric", GGML_TYPE_F16, 160},   {"blk.1.attn_v.rotation", GGML_TYPE_F16, 256},
      {"blk.1.attn_v.rotation", GGML_TYPE_F16, 512}, {"blk.1.attn_k.rotation", GGML_TYPE_F16, 512},
      {"blk.1.attn_v.order", GGML_TYPE_I16, 32},     {"blk.0.attn_k.order", GGML_TYPE_I16, 32},
      {"blk.0.attn_v.metric", GGML_TYPE_F16, 64}};
  for (const Case& wrong : kCases) {
    std::vector<char> zeros(static_cast<std::size_t>(wrong.size) * 4);
    ggml_context* own = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
    ggml_tensor* tensor = ggml_new_tensor_1d(own, wrong.type, wrong.size);
    tensor->data = zeros.data();
    ggml_set_name(tensor, wrong.name);
    const auto result = read_changed([](gguf_context*) {}, tensor);
    EXPECT_EQ(result.status().code(), StatusCode::kCorrupt) << wrong.name << " " << wrong.size;
    ggml_free(own);
  }
}

// Means of another size, number or type, and where none belongs; a side of which half is missing.
TEST_F(HostileFile, WrongMeans) {
  // Keys of layer 1: one head of 16 channels with codes and one without.
  constexpr WrongPart kCases[] = {
      {"blk.1.attn_k.mean", GGML_TYPE_F16, 15, 1, "shape"},
      {"blk.1.attn_k.mean", GGML_TYPE_F16, 32, 1, "shape"},
      {"blk.1.attn_k.mean", GGML_TYPE_F16, 16, 2, "numbers left"},
      {"blk.1.attn_k.mean", GGML_TYPE_F16, 16, 100000, "shape"},
      {"blk.1.attn_k.mean", GGML_TYPE_F32, 16, 1, "type"},
      {"blk.0.attn_k.mean", GGML_TYPE_F16, 16, 1, "tensors"},
      {"blk.1.attn_k.codebook", GGML_TYPE_F16, 256, 2, "numbers left"},
  };
  for (const WrongPart& wrong : kCases) {
    expect_corrupt(wrong);
  }
  for (const std::string name : {"blk.1.attn_k.mean", "blk.1.attn_k.codebook"}) {
    std::string damaged = bytes;
    damaged[damaged.find(name)] = 'x';
    expect_error(damaged, name);
  }
}

// Scales of another size or type, and where none belongs; bytes without scales.
TEST_F(HostileFile, WrongScales) {
  // Values of layer 0 are bytes, of two heads of 16 channels.
  constexpr WrongPart kCases[] = {
      {"blk.0.attn_v.scale", GGML_TYPE_F16, 15, 2, "shape"},
      {"blk.0.attn_v.scale", GGML_TYPE_F16, 16, 1, "shape"},
      {"blk.0.attn_v.scale", GGML_TYPE_F16, 16, 3, "shape"},
      {"blk.0.attn_v.scale", GGML_TYPE_F32, 16, 2, "type"},
      {"blk.0.attn_v.scale", GGML_TYPE_F16, 16, 2, "identity"},
      {"blk.0.attn_k.scale", GGML_TYPE_F16, 16, 2, "tensors"},
  };
  for (const WrongPart& wrong : kCases) {
    expect_corrupt(wrong);
  }
  std::string damaged = bytes;
  damaged[damaged.find("blk.0.attn_v.scale")] = 'x';
  const auto result = read(damaged);
  EXPECT_NE(result.status().message().find("no tensor 'blk.0.attn_v.scale'"), std::string::npos)
      << result.status().message();
}

TEST_F(HostileFile, NotFiniteCentroid) {
  for (const int half : {0x7C00, 0xFC00, 0x7E00, 0x7C01}) {
    std::string damaged = bytes;
    damaged[header_bytes + 10] = static_cast<char>(half & 0xFF);
    damaged[header_bytes + 11] = static_cast<char>(half >> 8);
    const auto result = read(damaged);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), StatusCode::kCorrupt);
    EXPECT_NE(result.status().message().find("blk.0.attn_k.codebook"), std::string::npos)
        << result.status().message();
  }
}

Setter set_version(std::uint32_t major, std::uint32_t minor) {
  return [=](gguf_context* context, const char* key) {
    const std::uint32_t version[2] = {major, minor};
    gguf_set_arr_data(context, key, GGUF_TYPE_UINT32, version, 2);
  };
}

TEST_F(HostileFile, VersionRule) {
  const auto with = [&](std::uint32_t major, std::uint32_t minor, bool extra) {
    return read_changed([&](gguf_context* changed) {
      set_version(major, minor)(changed, "kv_codebook.version");
      if (extra) {
        gguf_set_val_u32(changed, "kv_codebook.later", 1);
      }
    });
  };
  EXPECT_TRUE(with(kCodebookFileMajor, kCodebookFileMinor, false).ok());
  EXPECT_TRUE(with(kCodebookFileMajor, kCodebookFileMinor + 1, true).ok());
  EXPECT_EQ(with(kCodebookFileMajor, kCodebookFileMinor, true).status().code(),
            StatusCode::kCorrupt);
  for (const std::uint32_t major : {0U, kCodebookFileMajor + 1, 0xFFFFFFFFU}) {
    const auto result = with(major, 0, false);
    EXPECT_EQ(result.status().code(), StatusCode::kUnsupported);
    EXPECT_NE(result.status().message().find("version"), std::string::npos);
  }
}

constexpr const char* kHeldOutKeys[] = {
    "kv_codebook.held_out.n_tokens", "kv_codebook.held_out.k_loss", "kv_codebook.held_out.v_loss"};

// Version 1.0 knew no held-out text.
TEST_F(HostileFile, FilesOfVersionOneZeroAreRead) {
  const auto result = read_changed([&](gguf_context* changed) {
    set_version(1, 0)(changed, "kv_codebook.version");
    for (const char* key : kHeldOutKeys) {
      gguf_remove_key(changed, key);
    }
  });
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->identity(), codebook.identity());
  EXPECT_EQ(result->origin.held_out.n_tokens, 0U);
}

TEST_F(HostileFile, WrongHeldOutLoss) {
  for (const float value :
       {-0.5F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const char* key : {kHeldOutKeys[1], kHeldOutKeys[2]}) {
      const auto result =
          read_changed([&](gguf_context* changed) { gguf_set_val_f32(changed, key, value); });
      EXPECT_EQ(result.status().code(), StatusCode::kCorrupt) << key << " " << value;
    }
  }
}

TEST_F(HostileFile, UnknownTensorNeedsAHigherMinor) {
  const float one = 1;
  for (const std::uint32_t minor : {kCodebookFileMinor, kCodebookFileMinor + 1}) {
    ggml_context* own = ggml_init({2 * ggml_tensor_overhead(), nullptr, true});
    ggml_tensor* tensor = ggml_new_tensor_1d(own, GGML_TYPE_F32, 1);
    tensor->data = const_cast<float*>(&one);
    ggml_set_name(tensor, "blk.0.attn_k.transform");
    const auto result = read_changed(
        [&](gguf_context* changed) {
          set_version(kCodebookFileMajor, minor)(changed, "kv_codebook.version");
        },
        tensor);
    EXPECT_EQ(result.ok(), minor > kCodebookFileMinor);
    ggml_free(own);
  }
}

TEST_F(HostileFile, AnotherMethodOrRope) {
  for (const char* key : {"kv_codebook.method", "kv_codebook.key_rope"}) {
    const auto result =
        read_changed([&](gguf_context* changed) { gguf_set_val_str(changed, key, "other"); });
    EXPECT_EQ(result.status().code(), StatusCode::kUnsupported) << key;
  }
}

}  // namespace
}  // namespace cqkv
