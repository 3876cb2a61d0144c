// CodecSpec: its names, its legal values.
#include "cqkv/types.h"

#include <algorithm>
#include <charconv>
#include <functional>

namespace cqkv {
namespace {

bool legal_group_dim(int group_dim) {
  return group_dim >= 1 && group_dim <= kMaxGroupDim && (group_dim & (group_dim - 1)) == 0;
}

// Reads a decimal number followed by `suffix`; returns the rest, or nullptr.
const char* parse_number(const char* begin, const char* end, char suffix, int& out) {
  const auto [rest, error] = std::from_chars(begin, end, out);
  if (error != std::errc() || rest == end || *rest != suffix) {
    return nullptr;
  }
  return rest + 1;
}

}  // namespace

std::string_view kv_kind_name(KvKind kind) {
  return kind == KvKind::kKey ? "key" : "value";
}

std::string CodecSpec::name() const {
  if (exact()) {
    return "exact";
  }
  return std::to_string(group_dim) + "c" + std::to_string(code_bits) + "b";
}

Result<CodecSpec> CodecSpec::parse(std::string_view text) {
  if (text == "exact") {
    return CodecSpec{};
  }
  CodecSpec spec;
  const char* end = text.data() + text.size();
  const char* rest = parse_number(text.data(), end, 'c', spec.group_dim);
  if (rest != nullptr) {
    rest = parse_number(rest, end, 'b', spec.code_bits);
  }
  if (rest != end || rest == nullptr || !legal_group_dim(spec.group_dim) || spec.code_bits < 1 ||
      spec.code_bits > kMaxCodeBits) {
    return invalid_argument(
        "configuration: got '" + std::string(text) +
        "', want <channels>c<bits>b with 1, 2, 4, ... or 64 channels and 1 to " +
        std::to_string(kMaxCodeBits) + " bits, such as 8c8b, or 'exact'");
  }
  return spec;
}

Status CodecSpec::check(int head_dim) const {
  if (head_dim <= 0) {
    return invalid_argument("head size: got " + std::to_string(head_dim) + ", want at least 1");
  }
  if (exact()) {
    return {};
  }
  if (!legal_group_dim(group_dim) || code_bits < 1 || code_bits > kMaxCodeBits) {
    return invalid_argument("configuration: got " + name() +
                            ", want 1, 2, 4, ... or 64 channels and 1 to " +
                            std::to_string(kMaxCodeBits) + " bits");
  }
  if (head_dim % group_dim != 0) {
    return invalid_argument("configuration " + name() + ": groups of " + std::to_string(group_dim) +
                            " channels do not divide the head size " + std::to_string(head_dim));
  }
  return {};
}

TensorSpec::TensorSpec(CodecSpec spec, int n_kv_heads, int head_dim)
    : TensorSpec(spec.code_bits,
                 std::vector<int>(static_cast<std::size_t>(n_kv_heads), spec.group_dim), head_dim) {
}

TensorSpec::TensorSpec(int code_bits, const std::vector<int>& group_dims, int head_dim)
    : code_bits_(code_bits), head_dim_(head_dim), group_dims_(group_dims) {
  while (largest_group_dim_ < kMaxGroupDim && head_dim_ % (2 * largest_group_dim_) == 0) {
    largest_group_dim_ *= 2;
  }
  for (int kv_head = 0; kv_head < n_kv_heads(); kv_head++) {
    first_codes_.push_back(first_codes_.back() + n_codes(kv_head));
  }
}

bool TensorSpec::uniform() const {
  return std::adjacent_find(group_dims_.begin(), group_dims_.end(), std::not_equal_to<>()) ==
             group_dims_.end() &&
         (group_dims_.empty() || group_dims_[0] != 0);
}

std::string TensorSpec::name() const {
  const auto [least, most] = std::minmax_element(group_dims_.begin(), group_dims_.end());
  const std::string first = *least == 0 ? "mean" : CodecSpec{*least, code_bits_}.name();
  return *least == *most ? first : first + " to " + CodecSpec{*most, code_bits_}.name();
}

}  // namespace cqkv
