// See child_process.h.
#include "child_process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "command.h"

namespace cqkv::app {
namespace {

constexpr int kShownLines = 5;
constexpr int kCannotStart = 127;  // as shells say it

Status system_error(const std::string& what, int error) {
  return io_error(what + ": " + std::strerror(error));
}

class Pipe {
 public:
  Pipe() = default;

  ~Pipe() {
    close_end(ends_[0]);
    close_end(ends_[1]);
  }

  Pipe(const Pipe&) = delete;
  Pipe(Pipe&&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  Pipe& operator=(Pipe&&) = delete;

  Status open() {
    return ::pipe2(ends_.data(), O_CLOEXEC) == 0 ? Status() : system_error("pipe", errno);
  }

  int read_end() const { return ends_[0]; }

  int write_end() const { return ends_[1]; }

  void close_read_end() { close_end(ends_[0]); }

  void close_write_end() { close_end(ends_[1]); }

 private:
  static void close_end(int& end) {
    if (end >= 0) {
      ::close(end);
    }
    end = -1;
  }

  std::array<int, 2> ends_ = {-1, -1};
};

// As "NAME=value".
std::vector<std::string> changed_environment(const Environment& changes) {
  std::vector<std::string> result;
  for (char** variable = environ; *variable != nullptr; variable++) {
    const std::string_view text = *variable;
    const std::string_view name = text.substr(0, text.find('='));
    if (std::none_of(changes.begin(), changes.end(),
                     [&](const auto& change) { return change.first == name; })) {
      result.emplace_back(text);
    }
  }
  for (const auto& [name, value] : changes) {
    if (!value.empty()) {
      result.push_back(name);
      result.back() += "=" + value;
    }
  }
  return result;
}

// In the child: nothing but system calls until it is another program. It ends with its parent,
// however that ends: minutes of work that nobody waits for would disturb whoever measures next.
[[noreturn]] void become(const std::vector<char*>& arguments, const std::vector<char*>& variables,
                         int out, int err) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (::dup2(nothing, STDIN_FILENO) >= 0 && ::dup2(out, STDOUT_FILENO) >= 0 &&
      ::dup2(err, STDERR_FILENO) >= 0) {
    ::execve(arguments[0], arguments.data(), variables.data());
  }
  ::_exit(kCannotStart);
}

// `out` and `err` become its outputs.
Result<pid_t> start(std::vector<std::string> arguments, const Environment& changes, int out,
                    int err) {
  std::vector<std::string> variables = changed_environment(changes);
  const std::vector<char*> argument_pointers = exec_pointers(arguments);
  const std::vector<char*> variable_pointers = exec_pointers(variables);
  const pid_t child = ::fork();
  if (child == 0) {
    become(argument_pointers, variable_pointers, out, err);
  }
  return child > 0 ? Result<pid_t>(child) : system_error(arguments[0] + ": cannot start it", errno);
}

// What there is to read; closes the pipe at its end.
void read_some(Pipe& pipe, std::string& text) {
  std::array<char, 4096> buffer{};
  const ssize_t n = ::read(pipe.read_end(), buffer.data(), buffer.size());
  if (n > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(n));
  } else if (n == 0 || errno != EINTR) {
    pipe.close_read_end();
  }
}

// Both until the child has closed them.
void read_all(Pipe& out, Pipe& err, std::string& out_text, std::string& err_text) {
  while (out.read_end() >= 0 || err.read_end() >= 0) {
    // poll() passes over descriptors below 0.
    std::array<pollfd, 2> ends = {{{out.read_end(), POLLIN, 0}, {err.read_end(), POLLIN, 0}}};
    if (::poll(ends.data(), ends.size(), -1) < 0) {
      continue;
    }
    if (ends[0].revents != 0) {
      read_some(out, out_text);
    }
    if (ends[1].revents != 0) {
      read_some(err, err_text);
    }
  }
}

Result<int> wait_for(pid_t child) {
  int state = 0;
  while (::waitpid(child, &state, 0) < 0) {
    if (errno != EINTR) {
      return system_error("cannot wait for a child", errno);
    }
  }
  return state;
}

bool ended_well(int state) {
  return WIFEXITED(state) && WEXITSTATUS(state) == 0;
}

std::string how_it_ended(int state) {
  if (WIFEXITED(state) && WEXITSTATUS(state) == kCannotStart) {
    return "cannot be started";
  }
  return WIFSIGNALED(state) ? std::string("was ended by signal ") + ::strsignal(WTERMSIG(state))
                            : "got exit code " + std::to_string(WEXITSTATUS(state)) + ", want 0";
}

}  // namespace

std::vector<char*> exec_pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (std::string& text : texts) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

std::string last_lines(const std::string& text, int n_lines) {
  std::string result;
  std::size_t end = text.size();
  while (n_lines > 0 && end > 0) {
    const std::size_t line_break = text.rfind('\n', end - 1);
    const std::size_t begin = line_break == std::string::npos ? 0 : line_break + 1;
    if (begin < end) {
      result.insert(0, "\n  " + text.substr(begin, end - begin));
      n_lines--;
    }
    end = begin == 0 ? 0 : begin - 1;
  }
  return result;
}

Result<std::string> run_child(const std::vector<std::string>& arguments,
                              const Environment& changes) {
  Pipe out;
  Pipe err;
  CQKV_RETURN_IF_ERROR(out.open());
  CQKV_RETURN_IF_ERROR(err.open());
  const auto child = start(arguments, changes, out.write_end(), err.write_end());
  if (!child.ok()) {
    return child.status();
  }
  out.close_write_end();
  err.close_write_end();
  std::string out_text;
  std::string err_text;
  read_all(out, err, out_text, err_text);
  const auto state = wait_for(*child);
  if (!state.ok()) {
    return state.status();
  }
  if (!ended_well(*state)) {
    return Status(StatusCode::kInternal,
                  joined(arguments, " ") + ": " + how_it_ended(*state) +
                      last_lines(err_text.empty() ? out_text : err_text, kShownLines));
  }
  return out_text;
}

Status run_child_shown(const std::vector<std::string>& arguments) {
  const auto child = start(arguments, {}, STDERR_FILENO, STDERR_FILENO);
  if (!child.ok()) {
    return child.status();
  }
  const auto state = wait_for(*child);
  if (!state.ok() || ended_well(*state)) {
    return state.status();
  }
  return {StatusCode::kInternal,
          joined(arguments, " ") + ": did not end well, see above: it " + how_it_ended(*state)};
}

}  // namespace cqkv::app
