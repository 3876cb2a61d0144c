// Working memory: a buffer that grows, and arrays that are carved from it. Which arrays there are
// is not here: who works in one takes it. Internal to the attention folders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cqkv {

inline constexpr std::size_t kAlignment = 64;

// Memory that grows, aligned for vectors; contents are lost when it grows.
class AlignedBuffer {
 public:
  bool reserve(std::size_t bytes) {
    if (bytes <= size_) {
      return true;
    }
    data_.reset();  // before the new one, so that both need not fit
    data_.reset(static_cast<std::uint8_t*>(
        ::operator new (bytes, std::align_val_t{kAlignment}, std::nothrow)));
    size_ = data_ == nullptr ? 0 : bytes;
    return data_ != nullptr;
  }

  std::uint8_t* data() { return data_.get(); }

 private:
  struct Deleter {
    void operator()(std::uint8_t* data) const {
      ::operator delete (data, std::align_val_t{kAlignment});
    }
  };

  std::unique_ptr<std::uint8_t, Deleter> data_;
  std::size_t size_ = 0;
};

// An array in a buffer. It has one owner, and is const where its owner is: a const method of the
// owner cannot write to it.
template <typename T>
class WorkArray {
 public:
  WorkArray(T* data, std::size_t size) : data_(data), size_(size) {}

  WorkArray(const WorkArray&) = delete;
  WorkArray& operator=(const WorkArray&) = delete;
  WorkArray(WorkArray&&) = delete;
  WorkArray& operator=(WorkArray&&) = delete;
  ~WorkArray() = default;

  std::size_t size() const { return size_; }

  T* data() { return data_; }

  const T* data() const { return data_; }

  // From element `index` on.
  T* from(std::size_t index) { return data_ + index; }

  const T* from(std::size_t index) const { return data_ + index; }

 private:
  T* data_;
  std::size_t size_;
};

// Hands out consecutive aligned arrays; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::uint8_t* base) : base_(base) {}

  template <typename T>
  WorkArray<T> take(std::size_t n) {
    T* data = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset_);
    offset_ += (n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return WorkArray<T>(data, n);
  }

  std::size_t used() const { return offset_; }

 private:
  std::uint8_t* base_;
  std::size_t offset_ = 0;
};

}  // namespace cqkv
