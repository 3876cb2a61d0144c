// Memory that runs out at the n-th allocation: in reading and writing codebooks, and in
// everything that the device does. What fails must say so, leave nothing half done, and
// let everything go on afterwards.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

#include <gtest/gtest.h>

#include "cqkv/codebook_file.h"

#include "cache/cache_model.h"
#include "cache/kv_cache_driver.h"
#include "core/rng.h"
#include "device/codebook_library.h"
#include "device/device_driver.h"
#include "support/codebooks.h"
#include "support/temp_folder.h"

namespace {

// Allocations of this thread until one fails; negative: none does.
thread_local long allocations_left = -1;
thread_local bool failed = false;

bool fails_now() {
  if (allocations_left < 0 || allocations_left-- > 0) {
    return false;
  }
  failed = true;
  return true;
}

void fail_at(long n) {
  failed = false;
  allocations_left = n;
}

bool stop_failing() {
  allocations_left = -1;
  return failed;
}

void* allocate(std::size_t size, std::size_t alignment) {
  if (fails_now()) {
    return nullptr;
  }
  const std::size_t padded =
      (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, padded);
}

void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  void* memory = allocate(size, alignment);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

void* operator new(std::size_t size) {
  return allocate_or_throw(size, alignof(std::max_align_t));
}

void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return allocate(size, alignof(std::max_align_t));
}

void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<std::size_t>(alignment));
}

void* operator new(std::size_t size, std::align_val_t alignment,
                   const std::nothrow_t& /*tag*/) noexcept {
  return allocate(size, static_cast<std::size_t>(alignment));
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}

void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}

void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}

void operator delete(void* memory, std::size_t /*size*/, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}

namespace cqkv::device {
namespace {

// Runs `work` with the n-th allocation failing, for n = 0, 1, ... until it gets through.
template <typename Work, typename Check>
void expect_survives_each_failure(const Work& work, const Check& check) {
  long n = 0;
  for (;; n++) {
    fail_at(n);
    const Status status = work();
    if (!stop_failing()) {
      ASSERT_TRUE(status.ok()) << status.message();
      break;
    }
    ASSERT_EQ(status.code(), StatusCode::kResourceExhausted)
        << "allocation " << n << ": '" << status.message() << "'";
    check();
    ASSERT_LT(n, 100000) << "does it ever get through?";
  }
  EXPECT_GT(n, 10) << "fewer allocations than expected: is the test testing?";
}

TEST(Faults, ReadingACodebook) {
  const testing::TempFolder folder;
  const std::string path = folder.file("book.gguf");
  const Codebook codebook = testing::random_codebook(2, {8, 4}, {4, 4}, 2, 16);
  ASSERT_TRUE(write_codebook(codebook, path).ok());
  expect_survives_each_failure([&] { return CodebookLibrary::load(path.c_str()).status(); }, [] {});
}

TEST(Faults, WritingACodebookLeavesNoFile) {
  const testing::TempFolder folder;
  const std::string path = folder.file("book.gguf");
  const Codebook codebook = testing::random_codebook(2, {8, 4}, {4, 4}, 2, 16);
  expect_survives_each_failure([&] { return write_codebook(codebook, path); },
                               [&] { ASSERT_EQ(folder.n_files(), 0U); });
}

// Random operations of which many fail for want of memory, against the plain model: what
// did not fail must be right all the same.
void expect_goes_on(testing::MakeDriver make_driver) {
  using testing::CacheFaults;
  using testing::CacheKind;
  using testing::CacheModel;
  static Rng rng(3);
  static std::size_t n_failed = 0;
  const CacheFaults faults{
      .begin = [] { fail_at(rng.uniform() < 0.7 ? 1000000 : static_cast<long>(rng.below(12))); },
      .end =
          [] {
            const bool was = stop_failing();
            n_failed += was ? 1 : 0;
            return was;
          }};
  for (const CacheKind kind : {CacheKind::kUnified, CacheKind::kSmallPool, CacheKind::kStreams}) {
    CacheModel model(make_driver, kind, faults);
    while (model.counts().n_operations < 5000) {
      std::vector<std::uint8_t> bytes(300);
      for (auto& byte : bytes) {
        byte = static_cast<std::uint8_t>(rng.below(256));
      }
      ASSERT_EQ(model.run(bytes), "");
    }
    EXPECT_GT(model.counts().n_attended, 500U);
  }
  EXPECT_GT(n_failed, 1000U);
  n_failed = 0;
}

TEST(Faults, TheCacheGoesOn) {
  expect_goes_on(testing::make_kv_cache_driver);
}

TEST(Faults, TheDevicesCacheGoesOn) {
  expect_goes_on(testing::make_device_driver);
}

}  // namespace
}  // namespace cqkv::device
