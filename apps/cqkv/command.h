// What the subcommands share: how they are registered, how they fail, and how they write results.
// What their flags may be is in flag_values.h. One file per subcommand beside this.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>

#include "cqkv/status.h"

namespace cqkv::app {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNothingFound = 3;   // by `cqkv find`
inline constexpr int kExitInterrupted = 130;  // as shells count a SIGINT

/// Wrong use of a command found after parsing: exit code 2.
struct Usage {
  std::string message;
};

/// What a command hands back to main: nothing, a failure or a usage error.
struct Outcome {
  int exit_code = kExitOk;
  std::string message;

  Outcome() = default;

  Outcome(const Status& status)  // NOLINT(google-explicit-constructor): `return status;`
      : exit_code(status.ok() ? kExitOk : kExitFailure), message(status.message()) {}

  Outcome(const Usage& usage)  // NOLINT(google-explicit-constructor)
      : exit_code(kExitUsage), message(usage.message) {}
};

/// A registered subcommand. `passthrough` receives what stands after `--`.
struct Command {
  CLI::App* parser = nullptr;
  std::function<Outcome(const std::vector<std::string>& passthrough)> execute;
  bool takes_passthrough = false;
};

Command add_calibrate(CLI::App& app);
Command add_perplexity(CLI::App& app);
Command add_run(CLI::App& app);
Command add_serve(CLI::App& app);
Command add_find(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_info(CLI::App& app);
Command add_bench_attention(CLI::App& bench);
Command add_bench_encode(CLI::App& bench);
Command add_bench_model(CLI::App& bench);

/// That what was printed on standard output so far has arrived there.
Status flush_output();

/// Writes `text` to `path` ("-": standard output) completely or not at all.
Status write_text(const std::string& path, const std::string& text);

/// The same of JSON, indented; nothing if `path` is empty, as where no --json was given.
Status write_json(const std::string& path, const nlohmann::ordered_json& json);

/// 16 hexadecimal digits.
std::string hex64(unsigned long long value);

/// The words one after the other, `separator` between them.
std::string joined(const std::vector<std::string>& words, const char* separator);

/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace cqkv::app
