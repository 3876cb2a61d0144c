// Well-formed sequences by the table of the Unicode standard, section 3.9.
#include "calibration/utf8.h"

#include <cstddef>

namespace cqkv {
namespace {

unsigned byte_at(std::string_view text, std::size_t i) {
  return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
}

bool continues(unsigned byte) {
  return (byte & 0xC0U) == 0x80U;
}

// Length of the well-formed sequence at i, or 0.
std::size_t sequence_length(std::string_view text, std::size_t i) {
  const unsigned first = byte_at(text, i);
  const unsigned second = byte_at(text, i + 1);
  if (first < 0x80U) {
    return 1;
  }
  if (first < 0xC2U || first > 0xF4U || !continues(second)) {
    return 0;
  }
  if (first < 0xE0U) {
    return 2;
  }
  const bool third_ok = continues(byte_at(text, i + 2));
  if (first < 0xF0U) {
    const bool overlong = first == 0xE0U && second < 0xA0U;
    const bool surrogate = first == 0xEDU && second > 0x9FU;
    return third_ok && !overlong && !surrogate ? 3 : 0;
  }
  const bool overlong = first == 0xF0U && second < 0x90U;
  const bool too_large = first == 0xF4U && second > 0x8FU;
  return third_ok && continues(byte_at(text, i + 3)) && !overlong && !too_large ? 4 : 0;
}

}  // namespace

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = sequence_length(text, i);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      i++;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  return out;
}

}  // namespace cqkv
