// See variant.h.
#include "eval/variant.h"

#include <charconv>
#include <string_view>

namespace cqkv::eval {
namespace {

struct Bounds {
  int lowest;
  int highest;
};

constexpr Bounds kUbatch{1, 1 << 22};
constexpr Bounds kWindow{0, kMaxWindow};
constexpr Bounds kSwitch{0, 1};

Status parse_number(std::string_view digits, const std::string& text, const char* what,
                    const Bounds& bounds, int& out) {
  const char* end = digits.data() + digits.size();
  const auto [rest, error] = std::from_chars(digits.data(), end, out);
  if (error != std::errc() || rest != end || out < bounds.lowest || out > bounds.highest) {
    return invalid_argument("'" + text + "': got '" + std::string(digits) + "' for " + what +
                            ", want a number from " + std::to_string(bounds.lowest) + " to " +
                            std::to_string(bounds.highest));
  }
  return {};
}

Status set_option(std::string_view key, std::string_view digits, Variant& out) {
  if (key == "ub") {
    return parse_number(digits, out.text, "the micro-batch size", kUbatch, out.n_ubatch);
  }
  if (key == "window") {
    return parse_number(digits, out.text, "the window", kWindow, out.window.window.emplace());
  }
  if (key == "sinks") {
    return parse_number(digits, out.text, "the number of sinks", kWindow,
                        out.window.sinks.emplace());
  }
  if (key == "spare") {
    return parse_number(digits, out.text, "the number of spare rows", kWindow,
                        out.window.spare.emplace());
  }
  if (key == "bytes") {
    int bytes = 0;
    CQKV_RETURN_IF_ERROR(parse_number(digits, out.text, "byte tables", kSwitch, bytes));
    out.byte_tables = bytes != 0;
    return {};
  }
  return invalid_argument("'" + out.text + "': unknown option '@" + std::string(key) +
                          "'; there are @ub:N, @window:N, @sinks:N, @spare:N and @bytes:0");
}

// Takes "@<key>:<N>" off the end of `name`; false if it ends in none. No path ends so: a ':' would
// divide it for the device.
Result<bool> take_suffix(std::string_view& name, Variant& out) {
  const auto at = name.rfind('@');
  const auto colon = name.find(':', at == std::string_view::npos ? 0 : at);
  if (at == std::string_view::npos || colon == std::string_view::npos ||
      name.find('/', at) != std::string_view::npos) {
    return false;
  }
  CQKV_RETURN_IF_ERROR(
      set_option(name.substr(at + 1, colon - at - 1), name.substr(colon + 1), out));
  name = name.substr(0, at);
  return true;
}

// A word that looks like one of ours, and not like a file.
Status check_word(std::string_view name, const std::string& text) {
  const bool word = name.find_first_of("./") == std::string_view::npos;
  return word && name.starts_with("stock")
             ? invalid_argument("'" + text +
                                "': unknown; besides files there are none, stock, stock-nofa, "
                                "stock-q8_0 (or another of llama.cpp's cache types) and "
                                "stock-ub:N")
             : Status();
}

// What llama.cpp's --cache-type-k and --cache-type-v take, but for the floats.
bool take_cache_type(std::string_view name, Variant& out) {
  constexpr std::string_view kStock = "stock-";
  if (!name.starts_with(kStock)) {
    return false;
  }
  name.remove_prefix(kStock.size());
  for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, GGML_TYPE_Q4_1,
                               GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL}) {
    if (name == ggml_type_name(type)) {
      out.cache_type = type;
      return true;
    }
  }
  return false;
}

}  // namespace

Result<Variant> Variant::parse(const std::string& text) {
  constexpr std::string_view kStockUbatch = "stock-ub:";
  Variant result;
  result.text = text;
  std::string_view name = text;
  if (name.substr(0, kStockUbatch.size()) == kStockUbatch) {
    CQKV_RETURN_IF_ERROR(parse_number(name.substr(kStockUbatch.size()), text,
                                      "the micro-batch size", kUbatch, result.n_ubatch));
    return result;
  }
  for (bool more = true; more;) {
    const Result<bool> taken = take_suffix(name, result);
    if (!taken.ok()) {
      return taken.status();
    }
    more = *taken;
  }
  if (name == "stock" || name == "stock-nofa") {
    result.flash_attention = name == "stock";
  } else if (take_cache_type(name, result)) {
    result.kind = CacheKind::kStock;
  } else if (name == "none") {
    result.kind = CacheKind::kUncoded;
  } else {
    CQKV_RETURN_IF_ERROR(check_word(name, text));
    result.kind = CacheKind::kCoded;
    result.codebook_path = name;
  }
  const WindowOverride& window = result.window;
  const bool has_window = window.window || window.sinks || window.spare;
  if (result.kind != CacheKind::kCoded && (has_window || !result.byte_tables)) {
    return invalid_argument("'" + text + "': only a codebook has a window or byte tables");
  }
  return result;
}

}  // namespace cqkv::eval
