// See command.h.
#include "command.h"

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include <nlohmann/json.hpp>

#include "core/atomic_file.h"

namespace cqkv::app {

Status flush_output() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  // An earlier write may have failed for a reason that is lost.
  return flushed ? Status()
                 : io_error(std::string("standard output: cannot write") +
                            (errno == 0 ? "" : std::string(": ") + std::strerror(errno)));
}

Status write_text(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return flush_output();
  }
  AtomicFile file(path);
  CQKV_RETURN_IF_ERROR(file.open());
  CQKV_RETURN_IF_ERROR(file.write(text.data(), text.size()));
  return file.commit();
}

Status write_json(const std::string& path, const nlohmann::ordered_json& json) {
  return path.empty() ? Status() : write_text(path, json.dump(2) + "\n");
}

std::string hex64(unsigned long long value) {
  return format("%016llx", value);
}

std::string joined(const std::vector<std::string>& words, const char* separator) {
  std::string result;
  for (const std::string& word : words) {
    result += (result.empty() ? "" : separator) + word;
  }
  return result;
}

std::string format(const char* pattern, ...) {
  std::array<char, 512> buffer{};
  std::va_list arguments;
  va_start(arguments, pattern);
  // NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): clang 14 does not see va_start
  std::vsnprintf(buffer.data(), buffer.size(), pattern, arguments);
  va_end(arguments);
  return buffer.data();
}

}  // namespace cqkv::app
