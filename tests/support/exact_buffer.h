// A heap array of exactly n elements, so that the address sanitizer sees a kernel
// read or write beyond what it was given.
#pragma once

#include <cstddef>
#include <memory>

namespace cqkv {

template <typename T>
class ExactBuffer {
 public:
  explicit ExactBuffer(std::size_t n = 0) : data_(new T[n]()), size_(n) {}

  T* data() { return data_.get(); }

  const T* data() const { return data_.get(); }

  std::size_t size() const { return size_; }

  T& operator[](std::size_t i) { return data_[i]; }

  const T& operator[](std::size_t i) const { return data_[i]; }

  T* begin() { return data(); }

  T* end() { return data() + size_; }

  const T* begin() const { return data(); }

  const T* end() const { return data() + size_; }

 private:
  std::unique_ptr<T[]> data_;
  std::size_t size_;
};

}  // namespace cqkv
