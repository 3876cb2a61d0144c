// Writing and reading codebooks: everything comes back bit-equal, and a failed write
// leaves what was there. Hostile files are in hostile_file_test.cpp.
#include "cqkv/codebook_file.h"

#include <csignal>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codebook/byte_centroids.h"
#include "support/codebooks.h"
#include "support/temp_folder.h"

namespace cqkv {
namespace {

using testing::random_codebook;
using testing::random_tensor;
using testing::TempFolder;

void expect_equal(const Codebook& got, const Codebook& want) {
  EXPECT_EQ(got.origin.name, want.origin.name);
  EXPECT_EQ(got.origin.architecture, want.origin.architecture);
  EXPECT_EQ(got.origin.model_name, want.origin.model_name);
  EXPECT_EQ(got.origin.license, want.origin.license);
  EXPECT_EQ(got.origin.weighting, want.origin.weighting);
  EXPECT_EQ(got.origin.tool_version, want.origin.tool_version);
  EXPECT_EQ(got.origin.datasets, want.origin.datasets);
  EXPECT_EQ(got.origin.n_tokens, want.origin.n_tokens);
  EXPECT_EQ(got.origin.ctx_size, want.origin.ctx_size);
  EXPECT_EQ(got.origin.seed, want.origin.seed);
  EXPECT_EQ(got.origin.held_out.n_tokens, want.origin.held_out.n_tokens);
  EXPECT_EQ(got.origin.held_out.keys, want.origin.held_out.keys);
  EXPECT_EQ(got.origin.held_out.values, want.origin.held_out.values);
  EXPECT_EQ(got.origin.model_fingerprint, want.origin.model_fingerprint);
  EXPECT_EQ(got.window, want.window);
  EXPECT_EQ(got.sinks, want.sinks);
  ASSERT_EQ(got.layers.size(), want.layers.size());
  EXPECT_EQ(got.identity(), want.identity());
  for (std::size_t il = 0; il < want.layers.size(); il++) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const TensorCodebook* a = got.layers[il].get(kind);
      const TensorCodebook* b = want.layers[il].get(kind);
      ASSERT_EQ(a == nullptr, b == nullptr) << "layer " << il;
      if (b == nullptr) {
        continue;
      }
      EXPECT_EQ(a->spec(), b->spec());
      EXPECT_EQ(a->n_kv_heads(), b->n_kv_heads());
      EXPECT_EQ(a->head_dim(), b->head_dim());
      EXPECT_EQ(a->basis().parts(), b->basis().parts()) << "layer " << il;
      const auto x = a->centroids();
      const auto y = b->centroids();
      EXPECT_TRUE(std::equal(x.begin(), x.end(), y.begin(), y.end())) << "layer " << il;
    }
  }
}

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(CodebookFile, RoundTripOfEveryConfiguration) {
  const TempFolder folder;
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    for (int code_bits = 1; code_bits <= 12; code_bits++) {
      const Codebook want = random_codebook(1, {group_dim, code_bits}, {}, 1, 16);
      ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
      const auto got = read_codebook(folder.file("a.gguf"));
      ASSERT_TRUE(got.ok()) << got.status().message();
      expect_equal(*got, want);
    }
  }
}

// Not measured is written as nothing at all: 0 % would be a lie.
TEST(CodebookFile, RoundTripWithoutHeldOutText) {
  const TempFolder folder;
  Codebook want = random_codebook(1, {4, 4}, {4, 4}, 1, 16);
  want.origin.held_out = {};
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  EXPECT_EQ(contents(folder.file("a.gguf")).find("held_out"), std::string::npos);
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
}

TEST(CodebookFile, RoundTripOfMixedLayers) {
  const TempFolder folder;
  Codebook want = random_codebook(4, {8, 8}, {4, 6}, 3, 64);
  want.layers[0] = LayerCodebook{};  // exact
  want.layers[1].v.clear();
  want.layers[2].k = {random_tensor({2, 3}, 2, 80, 7)};  // another shape
  want.window = 128;
  want.sinks = 4;
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
  EXPECT_EQ(folder.n_files(), 1U);
}

// Rates by head in some layers and sides, beside layers whose heads are alike and exact ones.
TEST(CodebookFile, RoundTripOfRatesByHead) {
  const TempFolder folder;
  Codebook want = random_codebook(4, {8, 8}, {4, 8}, 3, 64);
  want.layers[0].k = {testing::random_mixed_tensor(8, {2, 64, 8}, 64, 1)};
  want.layers[2].k = {testing::random_mixed_tensor(5, {32, 16, 1}, 64, 2)};
  want.layers[2].v = {testing::random_mixed_tensor(8, {64, 4, 4}, 64, 3)};
  want.layers[3].k.clear();
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
}

// Heads without codes beside others, alone in their side, and of components.
TEST(CodebookFile, RoundTripOfHeadsWithoutCodes) {
  const TempFolder folder;
  Codebook want = random_codebook(4, {8, 8}, {4, 8}, 3, 64);
  want.layers[0].k = {testing::random_mixed_tensor(8, {0, 64, 8}, 64, 1)};
  want.layers[0].v = {testing::random_mixed_tensor(8, {0, 0, 0}, 64, 2)};
  want.layers[1].k = {
      testing::with_basis(testing::random_mixed_tensor(5, {32, 0, 1}, 64, 3), KvKind::kKey, 1)};
  want.layers[1].v = {
      testing::with_basis(testing::random_mixed_tensor(8, {0, 0, 4}, 64, 4), KvKind::kValue, 2)};
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
  EXPECT_EQ(got->identity(), want.identity());
  // Their means take no more room than they need: 192 values, not 256 times as many.
  EXPECT_EQ(want.layers[0].v.front().centroids().size(), 192U);
}

// Bases in some layers and sides, of heads that are alike and that are not.
TEST(CodebookFile, RoundTripOfBases) {
  const TempFolder folder;
  Codebook want = random_codebook(4, {8, 8}, {4, 8}, 3, 64);
  auto& layers = want.layers;
  layers[0].k = {
      testing::with_basis(testing::random_mixed_tensor(8, {1, 64, 8}, 64, 1), KvKind::kKey, 1)};
  layers[1].v = {testing::with_basis(layers[1].v.front(), KvKind::kValue, 2)};
  layers[2].k = {testing::with_basis(layers[2].k.front(), KvKind::kKey, 3)};
  TensorBasis::Parts metric = layers[2].k.front().basis().parts();
  metric.order.clear();
  const TensorCodebook& plain = layers[3].k.front();
  std::vector<float> centroids(plain.centroids().size(), 0.25F);
  layers[3].k = {TensorCodebook::create(plain.spec(), centroids,
                                        TensorBasis::create(plain.spec(), metric).value())
                     .value()};
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
}

// Centroids that are bytes are written as bytes, whatever the heads: half the size, the same
// codebook. Those of a side that are not stay as they are.
TEST(CodebookFile, RoundTripOfBytes) {
  const TempFolder folder;
  Codebook want = random_codebook(3, {8, 8}, {4, 8}, 3, 64);
  want.layers[1].k = {
      testing::with_basis(testing::random_mixed_tensor(8, {32, 0, 1}, 64, 3), KvKind::kKey, 1)};
  want.layers[1].v = {
      testing::with_basis(testing::random_mixed_tensor(8, {0, 0, 4}, 64, 4), KvKind::kValue, 2)};
  want.layers[2].v = {testing::random_mixed_tensor(8, {0, 0, 0}, 64, 5)};
  ASSERT_TRUE(write_codebook(want, folder.file("halves.gguf")).ok());
  for (LayerCodebook& layer : want.layers) {
    layer.k = {rounded_to_bytes(layer.k.front()).value()};
    layer.v = {rounded_to_bytes(layer.v.front()).value()};
  }
  ASSERT_TRUE(write_codebook(want, folder.file("bytes.gguf")).ok());
  const auto got = read_codebook(folder.file("bytes.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
  const std::size_t saved =
      contents(folder.file("halves.gguf")).size() - contents(folder.file("bytes.gguf")).size();
  std::size_t n_coded = 0;
  for (const LayerCodebook& layer : want.layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      n_coded += byte_centroids(*layer.get(kind))->bytes.size();
    }
  }
  EXPECT_LE(saved, n_coded);
  EXPECT_GT(saved, n_coded * 98 / 100) << "scales take a little";
  want.layers[0].k = {random_tensor({8, 8}, 3, 64, 9)};
  ASSERT_TRUE(write_codebook(want, folder.file("both.gguf")).ok());
  const auto both = read_codebook(folder.file("both.gguf"));
  ASSERT_TRUE(both.ok()) << both.status().message();
  expect_equal(*both, want);
}

TEST(CodebookFile, RoundTripOfEmptyStringsAndNoFingerprint) {
  const TempFolder folder;
  Codebook want = random_codebook(1, {}, {}, 1, 16);
  want.origin = CodebookOrigin{};
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
}

TEST(CodebookFile, ExtremeFiniteHalvesSurvive) {
  const TempFolder folder;
  const std::vector<float> values = {65504.0F, -65504.0F, 0x1p-24F, -0.0F};
  Codebook want = random_codebook(1, {}, {}, 1, 16);
  want.layers[0].k = {TensorCodebook::create({1, 2}, 1, 1, values).value()};
  ASSERT_TRUE(write_codebook(want, folder.file("a.gguf")).ok());
  const auto got = read_codebook(folder.file("a.gguf"));
  ASSERT_TRUE(got.ok()) << got.status().message();
  expect_equal(*got, want);
  EXPECT_EQ(got->layers[0].k[0].centroids()[3], 0x8000U);
}

TEST(CodebookFile, RefusesWhatCouldNotBeRead) {
  const TempFolder folder;
  Codebook none;
  EXPECT_EQ(write_codebook(none, folder.file("a")).code(), StatusCode::kInvalidArgument);
  Codebook wrong_hashes = random_codebook(2, {4, 4}, {4, 4}, 1, 16);
  wrong_hashes.origin.model_fingerprint.pop_back();
  EXPECT_EQ(write_codebook(wrong_hashes, folder.file("a")).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(folder.n_files(), 0U);
}

TEST(CodebookFile, MissingFolderOrFileIsNamed) {
  const TempFolder folder;
  const Codebook codebook = random_codebook(1, {4, 4}, {4, 4}, 1, 16);
  const Status written = write_codebook(codebook, folder.file("none/a.gguf"));
  EXPECT_EQ(written.code(), StatusCode::kIoError);
  EXPECT_NE(written.message().find("No such file or directory"), std::string::npos);
  EXPECT_EQ(read_codebook(folder.file("a.gguf")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(read_codebook(folder.path()).status().code(), StatusCode::kCorrupt);
  EXPECT_EQ(read_codebook("/dev/zero").status().code(), StatusCode::kCorrupt);
  // A device or folder under the name is not replaced by the rename.
  EXPECT_EQ(write_codebook(codebook, "/dev/full").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(write_codebook(codebook, folder.path()).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(folder.n_files(), 0U);
}

TEST(CodebookFile, ReadOnlyFolder) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root may write anywhere";
  }
  const TempFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0500), 0);
  const Status written =
      write_codebook(random_codebook(1, {4, 4}, {4, 4}, 1, 16), folder.file("a.gguf"));
  ASSERT_EQ(::chmod(folder.path().c_str(), 0700), 0);
  EXPECT_EQ(written.code(), StatusCode::kIoError);
  EXPECT_NE(written.message().find("Permission denied"), std::string::npos);
}

// A limit on the size of files makes write() fail in the middle, as a full disk does.
TEST(CodebookFile, FailedWriteKeepsTheOldFile) {
  const TempFolder folder;
  const std::string path = folder.file("a.gguf");
  ASSERT_TRUE(write_codebook(random_codebook(1, {4, 4}, {4, 4}, 1, 16), path).ok());
  const std::string before = contents(path);
  const Codebook large = random_codebook(2, {8, 8}, {8, 8}, 3, 64);
  rlimit old_limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {0U, 1U, 1000U, 100000U}) {
    rlimit new_limit = old_limit;
    new_limit.rlim_cur = limit;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &new_limit), 0);
    const Status written = write_codebook(large, path);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
    EXPECT_EQ(written.code(), StatusCode::kResourceExhausted) << limit;
    EXPECT_NE(written.message().find(path), std::string::npos);
    EXPECT_EQ(folder.n_files(), 1U) << limit;
    EXPECT_EQ(contents(path), before) << limit;
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST(CodebookFile, FullDisk) {
  const TempFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "cannot mount a small disk here; FailedWriteKeepsTheOldFile stands in";
  }
  const std::string path = folder.file("a.gguf");
  const Codebook small = random_codebook(1, {4, 4}, {4, 4}, 1, 16);
  const Status first = write_codebook(small, path);
  const Status full = write_codebook(random_codebook(2, {8, 8}, {8, 8}, 3, 64), path);
  const auto kept = read_codebook(path);
  const std::size_t n_files = folder.n_files();
  ::umount(folder.path().c_str());
  EXPECT_TRUE(first.ok()) << first.message();
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(full.message().find("No space left on device"), std::string::npos);
  ASSERT_TRUE(kept.ok()) << kept.status().message();
  expect_equal(*kept, small);
  EXPECT_EQ(n_files, 1U);
}

// Programs that read a codebook while another replaces it see the old or the new one,
// and one that is killed while it writes leaves the old one.
TEST(CodebookFile, IsWholeWhileItIsReplacedAndItsWriterKilled) {
  const testing::TempFolder folder;
  const std::string path = folder.file("book.gguf");
  const Codebook one = testing::random_codebook(4, {8, 8}, {8, 8}, 3, 64);
  const Codebook two = testing::random_codebook(4, {4, 8}, {4, 8}, 3, 64);
  const auto expect_whole = [&] {
    const auto read = read_codebook(path);
    ASSERT_TRUE(read.ok()) << read.status().message();
    ASSERT_TRUE(read->identity() == one.identity() || read->identity() == two.identity());
  };
  ASSERT_TRUE(write_codebook(one, path).ok());
  for (int round = 0; round < 20; round++) {
    const pid_t writer = fork();
    if (writer == 0) {
      for (;;) {
        if (!write_codebook(two, path).ok() || !write_codebook(one, path).ok()) {
          _exit(1);
        }
      }
    }
    for (int i = 0; i < 3 + round % 5; i++) {
      expect_whole();
    }
    ::kill(writer, SIGKILL);
    int state = 0;
    ::waitpid(writer, &state, 0);
    ASSERT_TRUE(WIFSIGNALED(state)) << "the writer failed";
    expect_whole();
  }
}

}  // namespace
}  // namespace cqkv
