// `cqkv run` and `cqkv serve`: llama.cpp's own programs, started on the KV device with
// a codebook. Nothing is generated here: after the checks this process becomes theirs.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include <unistd.h>

#include "child_process.h"
#include "codebook_search.h"
#include "command.h"
#include "device_environment.h"
#include "flag_values.h"
#include "host_flags.h"
#include "places.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::string model;
  CodebookChoice codebooks;
  WindowOverride window;
  bool chat = false;
  bool print = false;
};

constexpr int kServerSlots = 4;  // llama-server's own default

void print_command(const std::vector<std::string>& arguments) {
  const char* separator = "";
  for (const std::string& name : device_variables()) {
    if (const char* value = std::getenv(name.c_str())) {
      std::printf("%s%s='%s'", separator, name.c_str(), value);
      separator = " ";
    }
  }
  for (const auto& argument : arguments) {
    std::printf(" '%s'", argument.c_str());
  }
  std::printf("\n");
}

Outcome start(const Flags& flags, const std::string& who, const std::string& name,
              const std::vector<std::string>& passthrough) {
  const Status flags_ok = check_host_flags(passthrough);
  if (!flags_ok.ok()) {
    return Usage{flags_ok.message()};
  }
  CQKV_RETURN_IF_ERROR(check_host_environment());
  const std::string program = host_program(name);
  CQKV_RETURN_IF_ERROR(check_programs(program));
  const auto codebooks = codebooks_for(flags.model, flags.codebooks, who);
  if (!codebooks.ok()) {
    return codebooks.status();
  }
  const int n_sequences = count_sequences(passthrough, name == "llama-server" ? kServerSlots : 1);
  for (const auto& [variable, value] :
       device_environment({*codebooks, flags.window, n_sequences})) {
    ::setenv(variable.c_str(), value.c_str(), 1);
  }
  std::vector<std::string> arguments = {program, "-m", flags.model};
  const auto on_device = device_flags();
  arguments.insert(arguments.end(), on_device.begin(), on_device.end());
  arguments.insert(arguments.end(), {"-fa", "on"});
  arguments.insert(arguments.end(), passthrough.begin(), passthrough.end());
  if (flags.print) {
    print_command(arguments);
    return {};
  }
  ::execv(program.c_str(), exec_pointers(arguments).data());
  return io_error(program + ": cannot start it: " + std::strerror(errno));
}

void add_common(CLI::App* parser, Flags& flags) {
  add_file(parser, "-m,--model", flags.model, "The model (GGUF)")->required();
  add_codebook_flags(parser, flags.codebooks);
  add_window_flags(parser, flags.window);
  parser->add_flag("--print-command", flags.print, "Print what would be started, and stop");
}

}  // namespace

Command add_run(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("run", "Generate text with llama.cpp on a coded cache");
  const auto flags = std::make_shared<Flags>();
  add_common(parser, *flags);
  parser->add_flag("--chat", flags->chat, "Start llama-cli (conversation), not llama-completion");
  parser->footer(
      "Everything after -- goes to llama-completion (or llama-cli).\n"
      "Without --kv-codebook the codebook is what `cqkv find` prints.\n"
      "Examples:\n"
      "  cqkv run -m model.gguf --learn -- -p 'Once upon a time' -n 64\n"
      "  cqkv run -m model.gguf --kv 0.5 -- -p 'Once upon a time' -n 64\n"
      "  cqkv run -m model.gguf --kv-codebook model-cq.gguf --chat -- -c 8192");
  return {parser,
          [flags](const std::vector<std::string>& passthrough) {
            return start(*flags, "cqkv run", flags->chat ? "llama-cli" : "llama-completion",
                         passthrough);
          },
          /*takes_passthrough=*/true};
}

Command add_serve(CLI::App& app) {
  CLI::App* parser =
      app.add_subcommand("serve", "Serve a model with llama-server on a coded cache");
  const auto flags = std::make_shared<Flags>();
  add_common(parser, *flags);
  parser->footer(
      "Everything after -- goes to llama-server.\n"
      "Without --kv-codebook the codebook is what `cqkv find` prints.\n"
      "Examples:\n"
      "  cqkv serve -m model.gguf --learn -- -c 32768\n"
      "  cqkv serve -m model.gguf --kv-codebook model-cq.gguf -- -c 32768 -np 4 --port 8080");
  return {parser,
          [flags](const std::vector<std::string>& passthrough) {
            return start(*flags, "cqkv serve", "llama-server", passthrough);
          },
          /*takes_passthrough=*/true};
}

}  // namespace cqkv::app
