// See names.h.
#include "graph/names.h"

#include <charconv>
#include <cstring>
#include <string_view>

#include "core/side_text.h"

namespace cqkv {

std::optional<CacheName> parse_cache_name(const char* name) {
  std::string_view rest(name);
  CacheName result;
  if (rest.starts_with("cache_k_l")) {
    result.kind = KvKind::kKey;
  } else if (rest.starts_with("cache_v_l")) {
    result.kind = KvKind::kValue;
  } else {
    return std::nullopt;
  }
  rest.remove_prefix(std::string_view("cache_k_l").size());
  const char* end = rest.data() + rest.size();
  const auto [stop, error] = std::from_chars(rest.data(), end, result.layer);
  if (error != std::errc() || stop != end || result.layer < 0) {
    return std::nullopt;
  }
  return result;
}

std::string cache_text(const CacheName& name) {
  return side_text(name.kind, name.layer);
}

bool is_cache_like(const char* name) {
  return std::strncmp(name, "cache_", 6) == 0;
}

std::string fingerprint_weight(int layer) {
  return "blk." + std::to_string(layer) + ".attn_norm.weight";
}

}  // namespace cqkv
