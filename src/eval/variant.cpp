// See variant.h.
#include "eval/variant.h"

#include <charconv>
#include <string_view>

namespace cqkv::eval {
namespace {

Status parse_ubatch(std::string_view digits, const std::string& text, int& out) {
  const char* end = digits.data() + digits.size();
  const auto [rest, error] = std::from_chars(digits.data(), end, out);
  if (error != std::errc() || rest != end || out < 1) {
    return invalid_argument("'" + text + "': got '" + std::string(digits) +
                            "' for the micro-batch size, want a number from 1");
  }
  return {};
}

}  // namespace

Result<Variant> Variant::parse(const std::string& text) {
  constexpr std::string_view kStockUbatch = "stock-ub:";
  constexpr std::string_view kUbatch = "@ub:";
  Variant result;
  result.text = text;
  std::string_view name = text;
  if (name.substr(0, kStockUbatch.size()) == kStockUbatch) {
    CQKV_RETURN_IF_ERROR(parse_ubatch(name.substr(kStockUbatch.size()), text, result.n_ubatch));
    return result;
  }
  const auto suffix = name.rfind(kUbatch);
  if (suffix != std::string_view::npos) {
    CQKV_RETURN_IF_ERROR(parse_ubatch(name.substr(suffix + kUbatch.size()), text, result.n_ubatch));
    name = name.substr(0, suffix);
  }
  if (name == "stock" || name == "stock-nofa") {
    result.flash_attention = name == "stock";
  } else if (name == "none") {
    result.kind = CacheKind::kUncoded;
  } else {
    result.kind = CacheKind::kCoded;
    result.codebook_path = name;
  }
  return result;
}

}  // namespace cqkv::eval
