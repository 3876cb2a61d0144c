// What is said of a command line that cannot be read: the word that is wrong, the nearest one that
// is known, and what could stand there.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace cqkv::app {

/// The candidate that differs least from `word`; "" if none differs in less than half of it.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

/// Why no command was found among `words`, which follow `group` (the program, or `bench`).
std::string no_command_text(const CLI::App& group, const std::vector<std::string>& words);

/// Of a flag or argument that the command does not know.
std::string unexpected_text(const CLI::App& command, const std::string& word);

}  // namespace cqkv::app
