// See flag_values.h. CLI11's own checks print a bound of 309 digits where there is none, and
// convert "-5" to an unsigned number.
#include "flag_values.h"

#include <charconv>
#include <cmath>
#include <optional>

#include "command.h"

namespace cqkv::app {
namespace {

template <typename T>
std::optional<T> parse(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && rest == end ? std::optional<T>(value) : std::nullopt;
}

}  // namespace

CLI::Validator whole_number(const Range& range) {
  const auto check = [range](const std::string& text) {
    const auto value = parse<std::int64_t>(text);
    const bool good = value && ((*value >= range.lowest && *value <= range.highest) ||
                                (range.or_all && *value == -1));
    return good ? std::string()
                : "got '" + text + "', want a whole number from " + std::to_string(range.lowest) +
                      " to " + std::to_string(range.highest) +
                      (range.or_all ? ", or -1 for all" : "");
  };
  return {check, "", "whole_number"};
}

CLI::Validator real_number(double lowest, double highest) {
  const auto check = [lowest, highest](const std::string& text) {
    const auto value = parse<double>(text);
    return value && *value >= lowest && *value <= highest
               ? std::string()
               : "got '" + text + format("', want a number from %g to %g", lowest, highest);
  };
  return {check, "", "real_number"};
}

CLI::Validator file_name() {
  const auto check = [](const std::string& text) {
    return text.empty() ? "got an empty name, want that of a file" : std::string();
  };
  return {check, "", "file_name"};
}

CLI::Option* add_numbers(CLI::App* parser, const char* names, std::vector<int>& values,
                         const Range& range, const char* what) {
  return parser->add_option(names, values, what)
      ->capture_default_str()
      ->delimiter(',')
      ->check(whole_number(range))
      ->type_name("N,...");
}

CLI::Option* add_seconds(CLI::App* parser, double& value, const char* what) {
  return parser->add_option("--seconds", value, what)
      ->capture_default_str()
      ->check(real_number(0.0, 3600.0))
      ->type_name("S");
}

CLI::Option* add_file(CLI::App* parser, const char* names, std::string& value, const char* what) {
  return parser->add_option(names, value, what)->check(file_name())->type_name("FNAME");
}

CLI::Option* add_files(CLI::App* parser, const char* names, std::vector<std::string>& values,
                       const char* what) {
  return parser->add_option(names, values, what)->check(file_name())->type_name("FNAME");
}

CLI::Option* add_json_file(CLI::App* parser, std::string& value) {
  return add_file(parser, "--json", value, "Write the figures to this file ('-': standard output)");
}

void add_window_flags(CLI::App* parser, WindowOverride& window) {
  const auto add = [&](const char* name, std::optional<int>& value, const char* what) {
    parser->add_option(name, value, what)->check(whole_number(kWindowRange))->type_name("N");
  };
  add("--window", window.window,
      "Most recent tokens kept exact; default: as stored in the codebook");
  add("--sinks", window.sinks, "First tokens kept exact");
  add("--spare", window.spare,
      "Exact rows of a sequence beyond these, for when tokens are taken back; default: as many as "
      "weigh a quarter of the codes");
}

}  // namespace cqkv::app
