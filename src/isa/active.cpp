// The level in use: the best one, that of CQKV_FORCE_ISA or that of force_isa(). The choice
// is made once, on first use; see cqkv/isa.h.
#include <atomic>
#include <cstdlib>

#include "cqkv/isa.h"

#include "isa/select.h"

namespace cqkv {
namespace {

using isa::Level;

bool find_usable(std::string_view name, Level& found) {
  for (const Level level : isa::usable_levels()) {
    if (name == isa::level_name(level)) {
      found = level;
      return true;
    }
  }
  return false;
}

Status unknown_isa(std::string_view name, std::string_view source) {
  std::string known;
  for (const std::string& usable : supported_isas()) {
    known += (known.empty() ? "" : ", ") + usable;
  }
  return unsupported(std::string(source) + ": got '" + std::string(name) +
                     "', want one that was compiled in and that this processor has: " + known);
}

// The choice of the environment, or the best level; `status` says what was wrong.
struct Choice {
  std::atomic<Level> level;
  std::atomic<bool> forced{false};
  Status status;

  Choice() : level(isa::usable_levels().front()) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): read once, before threads can matter
    const char* wanted = std::getenv("CQKV_FORCE_ISA");
    if (wanted == nullptr || *wanted == '\0') {
      return;
    }
    Level wanted_level{};
    if (find_usable(wanted, wanted_level)) {
      level = wanted_level;
      forced = true;
    } else {
      status = unknown_isa(wanted, "CQKV_FORCE_ISA");
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

namespace isa {

Level active_level() {
  return choice().level.load(std::memory_order_relaxed);
}

bool is_forced() {
  return choice().forced.load(std::memory_order_relaxed);
}

}  // namespace isa

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Level level : isa::usable_levels()) {
    names.emplace_back(isa::level_name(level));
  }
  return names;
}

std::string active_isa() {
  return std::string(isa::level_name(isa::active_level()));
}

Status force_isa(std::string_view name) {
  Level level{};
  if (!find_usable(name, level)) {
    return unknown_isa(name, "instruction set");
  }
  choice().level = level;
  choice().forced = true;
  return {};
}

Status isa_status() {
  return choice().status;
}

}  // namespace cqkv
