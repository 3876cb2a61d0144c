// See variant.h.
#include "eval/variant.h"

#include <charconv>
#include <string_view>

namespace cqkv::eval {
namespace {

Status parse_number(std::string_view digits, const std::string& text, const char* what, int lowest,
                    int& out) {
  const char* end = digits.data() + digits.size();
  const auto [rest, error] = std::from_chars(digits.data(), end, out);
  if (error != std::errc() || rest != end || out < lowest) {
    return invalid_argument("'" + text + "': got '" + std::string(digits) + "' for " + what +
                            ", want a number from " + std::to_string(lowest));
  }
  return {};
}

// Takes "@<key>:<N>" off the end of `name`; false if it ends in none.
Result<bool> take_suffix(std::string_view& name, Variant& out) {
  const auto at = name.rfind('@');
  const auto colon = name.find(':', at == std::string_view::npos ? 0 : at);
  if (at == std::string_view::npos || colon == std::string_view::npos) {
    return false;
  }
  const std::string_view key = name.substr(at + 1, colon - at - 1);
  const std::string_view digits = name.substr(colon + 1);
  if (key == "ub") {
    CQKV_RETURN_IF_ERROR(parse_number(digits, out.text, "the micro-batch size", 1, out.n_ubatch));
  } else if (key == "window") {
    CQKV_RETURN_IF_ERROR(
        parse_number(digits, out.text, "the window", 0, out.window.window.emplace()));
  } else if (key == "sinks") {
    CQKV_RETURN_IF_ERROR(
        parse_number(digits, out.text, "the number of sinks", 0, out.window.sinks.emplace()));
  } else if (key == "spare") {
    CQKV_RETURN_IF_ERROR(
        parse_number(digits, out.text, "the number of spare rows", 0, out.window.spare.emplace()));
  } else if (key == "bytes") {
    int bytes = 0;
    CQKV_RETURN_IF_ERROR(parse_number(digits, out.text, "byte tables", 0, bytes));
    out.byte_tables = bytes != 0;
  } else {
    return false;
  }
  name = name.substr(0, at);
  return true;
}

}  // namespace

Result<Variant> Variant::parse(const std::string& text) {
  constexpr std::string_view kStockUbatch = "stock-ub:";
  Variant result;
  result.text = text;
  std::string_view name = text;
  if (name.substr(0, kStockUbatch.size()) == kStockUbatch) {
    CQKV_RETURN_IF_ERROR(parse_number(name.substr(kStockUbatch.size()), text,
                                      "the micro-batch size", 1, result.n_ubatch));
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
  } else if (name == "none") {
    result.kind = CacheKind::kUncoded;
  } else {
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
