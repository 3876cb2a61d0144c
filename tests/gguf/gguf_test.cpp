// Our reader and writer of GGUF files against ggml's: each reads what the other wrote, and both
// write the same bytes. Damaged files are read without harm (run under the asan preset); what that
// means for codebooks is in tests/codebook_file/hostile_file_test.cpp.
#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <ggml.h>
#include <gguf.h>
#include <gtest/gtest.h>

#include "core/rng.h"
#include "gguf/reader.h"
#include "gguf/writer.h"
#include "support/temp_folder.h"

namespace cqkv::gguf {
namespace {

using cqkv::testing::TempFolder;

struct ContextFree {
  void operator()(gguf_context* context) const { gguf_free(context); }

  void operator()(ggml_context* context) const { ggml_free(context); }
};

using Context = std::unique_ptr<gguf_context, ContextFree>;
using TensorContext = std::unique_ptr<ggml_context, ContextFree>;

const std::vector<std::string> kStrings = {"", "two", std::string(300, 'x')};
const std::vector<std::uint32_t> kNumbers = {0, 7, std::numeric_limits<std::uint32_t>::max()};
const std::vector<std::uint64_t> kLarge = {1, std::numeric_limits<std::uint64_t>::max()};

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Gguf : public ::testing::Test {
 protected:
  Gguf() : tensors_(ggml_init({1U << 20U, nullptr, false})), header_(gguf_init_empty()) {}

  // The same file by either.
  std::string ours() {
    Writer out;
    out.set_string("general.type", "model");
    out.set_u32("a.u32", 5);
    out.set_u64("a.u64", kLarge[1]);
    out.set_f32("a.f32", 0.25F);
    out.set_strings("a.strings", kStrings);
    out.set_u32s("a.numbers", kNumbers);
    out.set_u64s("a.large", kLarge);
    out.set_u32s("a.none", {});
    const std::array<std::int64_t, 4> shape = {3, 5, 1, 1};
    out.add_tensor("halves", TensorType::kF16, shape, halves_.data());
    const std::array<std::int64_t, 1> one = {7};
    out.add_tensor("shorts", TensorType::kI16, one, shorts_.data());
    EXPECT_TRUE(out.write(folder_.file("ours.gguf")).ok());
    return folder_.file("ours.gguf");
  }

  std::string theirs() {
    gguf_set_val_str(header(), "general.type", "model");
    gguf_set_val_u32(header(), "a.u32", 5);
    gguf_set_val_u64(header(), "a.u64", kLarge[1]);
    gguf_set_val_f32(header(), "a.f32", 0.25F);
    const char* strings[] = {kStrings[0].c_str(), kStrings[1].c_str(), kStrings[2].c_str()};
    gguf_set_arr_str(header(), "a.strings", strings, 3);
    gguf_set_arr_data(header(), "a.numbers", GGUF_TYPE_UINT32, kNumbers.data(), 3);
    gguf_set_arr_data(header(), "a.large", GGUF_TYPE_UINT64, kLarge.data(), 2);
    gguf_set_arr_data(header(), "a.none", GGUF_TYPE_UINT32, nullptr, 0);
    add("halves", ggml_new_tensor_2d(tensors_.get(), GGML_TYPE_F16, 3, 5), halves_.data());
    add("shorts", ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_I16, 7), shorts_.data());
    return write();
  }

  gguf_context* header() { return header_.get(); }

  void add(const char* name, ggml_tensor* tensor, const void* data = nullptr) {
    ggml_set_name(tensor, name);
    std::memset(tensor->data, 0, ggml_nbytes(tensor));
    if (data != nullptr) {
      std::memcpy(tensor->data, data, ggml_nbytes(tensor));
    }
    gguf_add_tensor(header(), tensor);
  }

  std::string write() {
    EXPECT_TRUE(gguf_write_to_file(header(), folder_.file("theirs.gguf").c_str(), false));
    return folder_.file("theirs.gguf");
  }

  static Reader open(const std::string& path) {
    auto reader = Reader::open(path);
    EXPECT_TRUE(reader.ok()) << reader.status().message();
    return *std::move(reader);
  }

  TempFolder folder_;
  TensorContext tensors_;
  Context header_;
  std::array<std::uint16_t, 15> halves_ = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  std::array<std::int16_t, 7> shorts_ = {-1, 2, -3, 4, -5, 6, -7};
};

TEST_F(Gguf, BothWriteTheSameBytes) {
  EXPECT_EQ(contents(ours()), contents(theirs()));
}

TEST_F(Gguf, ReadsWhatWasWritten) {
  const Reader file = open(theirs());
  EXPECT_EQ(*file.get_string("general.type"), "model");
  EXPECT_EQ(*file.get_u32("a.u32"), 5U);
  EXPECT_EQ(*file.get_u64("a.u64"), kLarge[1]);
  EXPECT_EQ(*file.get_f32("a.f32"), 0.25F);
  EXPECT_EQ(*file.get_strings("a.strings"), kStrings);
  EXPECT_EQ(*file.get_u32s("a.numbers"), kNumbers);
  EXPECT_EQ(*file.get_u64s("a.large"), kLarge);
  EXPECT_TRUE(file.get_u32s("a.none")->empty());
  EXPECT_EQ(file.keys().size(), 8U);
  EXPECT_EQ(*file.get_string_or_empty("none"), "");
  ASSERT_EQ(file.tensors().size(), 2U);
  const Tensor* halves = file.find_tensor("halves");
  ASSERT_NE(halves, nullptr);
  EXPECT_EQ(halves->ne, (std::array<std::int64_t, 4>{3, 5, 1, 1}));
  std::array<std::uint16_t, 15> read{};
  ASSERT_EQ(halves->n_bytes, sizeof(read));
  ASSERT_TRUE(file.read(halves->place, read.data(), sizeof(read)).ok());
  EXPECT_EQ(read, halves_);
  std::array<std::int16_t, 7> shorts{};
  ASSERT_TRUE(file.read(file.find_tensor("shorts")->place, shorts.data(), sizeof(shorts)).ok());
  EXPECT_EQ(shorts, shorts_);
}

TEST_F(Gguf, IntegersOfEveryWidth) {
  gguf_set_val_u8(header(), "u8", 200);
  gguf_set_val_i8(header(), "i8", -100);
  gguf_set_val_u16(header(), "u16", 60000);
  gguf_set_val_i16(header(), "i16", -30000);
  gguf_set_val_u32(header(), "u32", 4000000000U);
  gguf_set_val_i32(header(), "i32", -2000000000);
  gguf_set_val_u64(header(), "u64", 1ULL << 62U);
  gguf_set_val_i64(header(), "i64", std::numeric_limits<std::int64_t>::min());
  const std::int16_t several[] = {-1, 0, 1};
  gguf_set_arr_data(header(), "several", GGUF_TYPE_INT16, several, 3);
  gguf_set_val_u64(header(), "too large", 1ULL << 63U);
  gguf_set_val_bool(header(), "bool", true);
  gguf_set_val_f64(header(), "f64", 1);
  gguf_set_val_str(header(), "string", "1");
  const Reader file = open(write());
  const auto integers = [&](const char* key) { return file.read_integers(key, *file.find(key)); };
  const auto one = [&](const char* key) { return integers(key)->front(); };
  EXPECT_EQ(one("u8"), 200);
  EXPECT_EQ(one("i8"), -100);
  EXPECT_EQ(one("u16"), 60000);
  EXPECT_EQ(one("i16"), -30000);
  EXPECT_EQ(one("u32"), 4000000000);
  EXPECT_EQ(one("i32"), -2000000000);
  EXPECT_EQ(one("u64"), std::int64_t{1} << 62);
  EXPECT_EQ(one("i64"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(*integers("several"), (std::vector<std::int64_t>{-1, 0, 1}));
  for (const char* key : {"too large", "bool", "f64", "string"}) {
    EXPECT_EQ(integers(key).status().code(), StatusCode::kCorrupt) << key;
  }
}

// Types whose size only ggml knows: what there is up to the next tensor.
TEST_F(Gguf, TensorsOfOtherTypes) {
  add("q4", ggml_new_tensor_2d(tensors_.get(), GGML_TYPE_Q4_K, 256, 3));
  add("q8", ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_Q8_0, 64));
  const std::string path = write();
  const Reader file = open(path);
  EXPECT_EQ(static_cast<int>(file.find_tensor("q4")->type), GGML_TYPE_Q4_K);
  EXPECT_GE(file.find_tensor("q4")->n_bytes, 3 * ggml_type_size(GGML_TYPE_Q4_K));
  const Context read(gguf_init_from_file(path.c_str(), {true, nullptr}));
  for (const char* name : {"q4", "q8"}) {
    const std::int64_t id = gguf_find_tensor(read.get(), name);
    EXPECT_EQ(file.find_tensor(name)->place,
              gguf_get_data_offset(read.get()) + gguf_get_tensor_offset(read.get(), id));
  }
}

TEST_F(Gguf, ErrorsNameTheKeyAndBothTypes) {
  const std::string path = theirs();
  const Reader file = open(path);
  EXPECT_EQ(file.get_u32("none").status().message(), path + ": has no key 'none'");
  EXPECT_EQ(file.get_u32("a.f32").status().message(), path + ": key 'a.f32' is f32, want u32");
  EXPECT_EQ(file.get_u32("a.numbers").status().message(),
            path + ": key 'a.numbers' is an array of u32, want u32");
  EXPECT_EQ(file.get_strings("a.u32").status().message(),
            path + ": key 'a.u32' is u32, want an array of str");
  EXPECT_EQ(Reader::open(folder_.file("none")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Reader::open(folder_.file("")).status().code(), StatusCode::kCorrupt);
}

// What opens must also be readable.
void use(const std::string& path) {
  const auto file = Reader::open(path);
  if (!file.ok()) {
    EXPECT_EQ(file.status().message().rfind(path, 0), 0U) << file.status().message();
    return;
  }
  for (const std::string& key : file->keys()) {
    file->get_string(key).status();
    file->get_strings(key).status();
    file->get_u64s(key).status();
    file->read_integers(key, *file->find(key)).status();
  }
  for (const Tensor& tensor : file->tensors()) {
    std::vector<char> data(tensor.n_bytes);
    EXPECT_TRUE(file->read(tensor.place, data.data(), data.size()).ok());
  }
}

TEST_F(Gguf, DamagedFiles) {
  const std::string bytes = contents(ours());
  const std::string path = folder_.file("damaged.gguf");
  const auto try_bytes = [&](const std::string& damaged) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << damaged;
    use(path);
  };
  for (std::size_t n = 0; n < bytes.size(); n++) {
    try_bytes(bytes.substr(0, n));
  }
  for (std::uint64_t seed = 0; seed < 3000; seed++) {
    Rng rng(seed);
    std::string damaged = bytes;
    for (std::uint64_t i = 0; i <= rng.below(4); i++) {
      damaged[rng.below(damaged.size())] = static_cast<char>(rng.below(256));
    }
    try_bytes(damaged);
  }
}

}  // namespace
}  // namespace cqkv::gguf
