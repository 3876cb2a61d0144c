// See command.h.
#include "command.h"

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include <nlohmann/json.hpp>

#include "codebook_file/atomic_file.h"

namespace cqkv::app {

void add_window_flags(CLI::App* parser, WindowOverride& window) {
  const auto add = [&](const char* name, std::optional<int>& value, const char* what) {
    parser->add_option(name, value, what)->check(CLI::NonNegativeNumber)->type_name("N");
  };
  add("--window", window.window,
      "Most recent tokens kept exact; default: as stored in the codebook");
  add("--sinks", window.sinks, "First tokens kept exact");
  add("--spare", window.spare,
      "Exact rows of a sequence beyond these, for when tokens are taken back; default: as many as "
      "weigh a quarter of the codes");
}

Status write_text(const std::string& path, const std::string& text) {
  if (path == "-") {
    const bool written =
        std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
    return written
               ? Status()
               : io_error(std::string("standard output: cannot write: ") + std::strerror(errno));
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
