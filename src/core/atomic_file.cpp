// See atomic_file.h. Plain POSIX calls, because the C++ streams lose the error.
#include "core/atomic_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace cqkv {
namespace {

std::string folder_of(const std::string& path) {
  const auto slash = path.find_last_of('/');
  if (slash == std::string::npos) {
    return ".";
  }
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
}

Status AtomicFile::failed(const char* doing, int error) const {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return {full ? StatusCode::kResourceExhausted : StatusCode::kIoError,
          path_ + ": cannot " + doing + ": " + std::strerror(error) +
              (full ? "; free some space or choose another place" : "")};
}

Status AtomicFile::open() {
  struct stat info = {};
  if (path_.empty()) {
    return invalid_argument("output file: got an empty name");
  }
  if (::stat(path_.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return invalid_argument(path_ + ": is " + (S_ISDIR(info.st_mode) ? "a folder" : "a device") +
                            ", want the name of a file to write");
  }
  for (int attempt = 0; attempt < 100; attempt++) {
    temporary_ = path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0 || errno != EEXIST) {
      break;
    }
  }
  return descriptor_ >= 0 ? Status() : failed("create a file beside it", errno);
}

Status AtomicFile::write(const void* data, std::size_t n_bytes) {
  const auto* next = static_cast<const char*>(data);
  while (n_bytes > 0) {
    const ssize_t written = ::write(descriptor_, next, std::min<std::size_t>(n_bytes, 1U << 30U));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return failed("write", written < 0 ? errno : ENOSPC);
    }
    next += written;
    n_bytes -= static_cast<std::size_t>(written);
  }
  return {};
}

Status AtomicFile::commit() {
  const std::string parent = folder_of(path_);  // now: nothing may fail after the renaming
  if (::fsync(descriptor_) != 0) {
    return failed("flush to the disk", errno);
  }
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    return failed("rename the finished file", errno);
  }
  // Some file systems report a failed write only here; the data are flushed, though.
  ::close(descriptor_);
  descriptor_ = -1;
  // The name itself survives a power cut only if the folder is flushed too; a file
  // system that cannot do that is no reason to fail.
  const int folder = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    (void)::fsync(folder);
    ::close(folder);
  }
  return {};
}

}  // namespace cqkv
