// Another program run to its end, without a shell: what it printed or showed, or why it failed.
#pragma once

#include <string>
#include <vector>

#include "cqkv/status.h"

#include "device_environment.h"

namespace cqkv::app {

/// Starts `arguments[0]`, a path, with nothing on its standard input and in this process's
/// environment, of which `changes` replaces variables and, where the value is empty, removes them.
/// It does not outlive this process.
///
/// @return its standard output. kIoError if there can be no further process; kInternal, with the
///   command and its last lines, if it does not end with exit code 0.
Result<std::string> run_child(const std::vector<std::string>& arguments,
                              const Environment& changes);

/// The same for one whose work a person watches: what it prints, on both its outputs, goes to the
/// standard error of this process.
///
/// @return kIoError if there can be no further process; kInternal, with the command, if it does not
///   end with exit code 0: the reason was shown.
Status run_child_shown(const std::vector<std::string>& arguments);

/// As exec() wants them, null at the end; they point into the texts.
std::vector<char*> exec_pointers(std::vector<std::string>& texts);

/// The last lines that are not empty, each after a line break and an indent.
std::string last_lines(const std::string& text, int n_lines);

}  // namespace cqkv::app
