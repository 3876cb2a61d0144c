// See suggestions.h.
#include "suggestions.h"

#include <algorithm>
#include <numeric>

#include "command.h"

namespace cqkv::app {
namespace {

// Letters to insert, remove or replace (Levenshtein).
std::size_t distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); i++) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); j++) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string best = nearest(word, candidates);
  return best.empty() ? "" : ", did you mean '" + best + "'?";
}

std::vector<std::string> commands_of(const CLI::App& group) {
  std::vector<std::string> names;
  for (const CLI::App* command : group.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t least = (word.size() + 1) / 2;
  for (const std::string& candidate : candidates) {
    const std::size_t n = distance(word, candidate);
    if (n < least) {
      least = n;
      best = candidate;
    }
  }
  return best;
}

std::string no_command_text(const CLI::App& group, const std::vector<std::string>& words) {
  const std::vector<std::string> commands = commands_of(group);
  const std::string want = "want one of " + joined(commands, ", ");
  if (words.empty()) {
    return "no command is given; " + want;
  }
  const std::string& word = words.front();
  if (word.rfind('-', 0) == 0) {
    return "unknown flag '" + word + "' before the command; " + want;
  }
  return "unknown command '" + word + "'" + did_you_mean(word, commands) + "; " + want;
}

std::string unexpected_text(const CLI::App& command, const std::string& word) {
  if (word.rfind('-', 0) == 0) {
    return "unknown flag '" + word + "'" + did_you_mean(word, flags_of(command));
  }
  return "unexpected argument '" + word + "'";
}

}  // namespace cqkv::app
