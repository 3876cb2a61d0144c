// See host_flags.h. Names as in common/arg.cpp of the pinned llama.cpp.
#include "host_flags.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace cqkv::app {
namespace {

struct Rule {
  std::vector<std::string> flags;
  const char* variable;  // of the environment, or nullptr
  bool has_value;
  std::vector<std::string> allowed;  // values; empty: none
  const char* reason;
};

const std::vector<Rule>& rules() {
  static const std::vector<Rule> list = {
      {{"-m", "--model"}, nullptr, true, {}, "give the model to cqkv, before '--'"},
      {{"-fa", "--flash-attn"},
       "LLAMA_ARG_FLASH_ATTN",
       true,
       {"on", "auto", "1", "-1", "true", "enabled"},
       "a coded cache needs flash attention; leave the flag out"},
      {{"-nkvo", "--no-kv-offload"},
       "LLAMA_ARG_NO_KV_OFFLOAD",
       false,
       {},
       "it keeps the cache away from the KV device, uncoded; leave it out"},
      {{"-ctk", "--cache-type-k"},
       "LLAMA_ARG_CACHE_TYPE_K",
       true,
       {"f16"},
       "a coded cache is nominally f16; leave the flag out"},
      {{"-ctv", "--cache-type-v"},
       "LLAMA_ARG_CACHE_TYPE_V",
       true,
       {"f16"},
       "a coded cache is nominally f16; leave the flag out"},
      {{"-dev", "--device"},
       "LLAMA_ARG_DEVICE",
       true,
       {"CQ0"},
       "the layers must stay on the KV device; leave the flag out"},
      {{"-ngl", "--gpu-layers", "--n-gpu-layers"},
       "LLAMA_ARG_N_GPU_LAYERS",
       true,
       {"99", "all"},
       "layers away from the KV device are not coded; leave the flag out"},
  };
  return list;
}

Status conflict(const std::string& what, const Rule& rule) {
  return invalid_argument("conflicting " + what + ": " + rule.reason);
}

bool allows(const Rule& rule, const std::string& value) {
  return std::find(rule.allowed.begin(), rule.allowed.end(), value) != rule.allowed.end();
}

}  // namespace

Status check_host_flags(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); i++) {
    for (const Rule& rule : rules()) {
      if (std::find(rule.flags.begin(), rule.flags.end(), arguments[i]) == rule.flags.end()) {
        continue;
      }
      const bool has_value = rule.has_value && i + 1 < arguments.size();
      if (!has_value) {
        return conflict("flag '" + arguments[i] + "' after '--'", rule);
      }
      if (!allows(rule, arguments[i + 1])) {
        return conflict("flag '" + arguments[i] + " " + arguments[i + 1] + "' after '--'", rule);
      }
    }
  }
  return {};
}

Status check_host_environment() {
  for (const Rule& rule : rules()) {
    const char* value = rule.variable == nullptr ? nullptr : std::getenv(rule.variable);
    if (value != nullptr && !allows(rule, value)) {
      return conflict(std::string("environment variable ") + rule.variable + "=" + value, rule);
    }
  }
  return {};
}

int count_sequences(const std::vector<std::string>& arguments, int by_default) {
  const char* variable = std::getenv("LLAMA_ARG_N_PARALLEL");
  std::string text = variable == nullptr ? "" : variable;
  for (std::size_t i = 0; i + 1 < arguments.size(); i++) {
    if (arguments[i] == "-np" || arguments[i] == "--parallel") {
      text = arguments[i + 1];
    }
  }
  int number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && number > 0 ? number : by_default;
}

}  // namespace cqkv::app
