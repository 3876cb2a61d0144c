// Making text valid UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace cqkv {

/// `text` with every byte that is not part of well-formed UTF-8 (overlong forms and
/// surrogates included) replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace cqkv
