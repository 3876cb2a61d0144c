// `cqkv run` and `cqkv serve`: llama.cpp's own programs, started on the KV device with
// a codebook. Nothing is generated here: after the checks this process becomes theirs.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>

#include <unistd.h>

#include "command.h"
#include "host_flags.h"
#include "places.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::string model;
  std::vector<std::string> codebooks;
  std::optional<int> window;
  std::optional<int> sinks;
  bool chat = false;
  bool print = false;
};

Status check_programs(const std::string& program) {
  for (const std::string& path : {program, device_library()}) {
    if (!std::filesystem::exists(path)) {
      return {StatusCode::kNotFound, path +
                                         " does not exist; build with 'make build', which puts "
                                         "llama.cpp's programs and the KV device beside cqkv"};
    }
  }
  return {};
}

Result<std::string> joined(const std::vector<std::string>& paths) {
  std::string result;
  for (const auto& path : paths) {
    if (path.find(':') != std::string::npos) {
      return invalid_argument("codebook '" + path +
                              "': ':' separates paths in CQKV_CODEBOOK; rename the file");
    }
    result += (result.empty() ? "" : ":") + path;
  }
  return result;
}

constexpr int kServerSlots = 4;  // llama-server's own default
constexpr const char* kVariables[] = {"GGML_BACKEND_PATH", "CQKV_CODEBOOK", "CQKV_WINDOW",
                                      "CQKV_SINKS", "CQKV_SEQUENCES"};

void print_command(const std::vector<std::string>& arguments) {
  const char* separator = "";
  for (const char* name : kVariables) {
    if (const char* value = std::getenv(name)) {
      std::printf("%s%s='%s'", separator, name, value);
      separator = " ";
    }
  }
  for (const auto& argument : arguments) {
    std::printf(" '%s'", argument.c_str());
  }
  std::printf("\n");
}

// The device makes room for the windows of so many sequences where they share one cache.
void set_window(const Flags& flags, int n_sequences) {
  const auto set = [](const char* name, const std::optional<int>& value) {
    if (value) {
      ::setenv(name, std::to_string(*value).c_str(), 1);
    }
  };
  set("CQKV_WINDOW", flags.window);
  set("CQKV_SINKS", flags.sinks);
  ::setenv("CQKV_SEQUENCES", std::to_string(n_sequences).c_str(), 0);  // the user's own goes first
}

Outcome start(const Flags& flags, const std::string& name,
              const std::vector<std::string>& passthrough) {
  const Status flags_ok = check_host_flags(passthrough);
  if (!flags_ok.ok()) {
    return Usage{flags_ok.message()};
  }
  CQKV_RETURN_IF_ERROR(check_host_environment());
  CQKV_RETURN_IF_ERROR(check_codebooks(flags.model, flags.codebooks));
  const std::string program = program_folder() + "/" + name;
  CQKV_RETURN_IF_ERROR(check_programs(program));
  const auto codebooks = joined(flags.codebooks);
  if (!codebooks.ok()) {
    return codebooks.status();
  }
  ::setenv("GGML_BACKEND_PATH", device_library().c_str(), 1);
  ::setenv("CQKV_CODEBOOK", codebooks->c_str(), 1);
  set_window(flags, count_sequences(passthrough, name == "llama-server" ? kServerSlots : 1));
  std::vector<std::string> arguments = {program, "-m",  flags.model, "-dev", "CQ0", "-ngl",
                                        "99",    "-fa", "on",        "-fit", "off"};
  arguments.insert(arguments.end(), passthrough.begin(), passthrough.end());
  if (flags.print) {
    print_command(arguments);
    return {};
  }
  std::vector<char*> pointers;
  pointers.reserve(arguments.size() + 1);
  for (auto& argument : arguments) {
    pointers.push_back(argument.data());
  }
  pointers.push_back(nullptr);
  ::execv(program.c_str(), pointers.data());
  return io_error(program + ": cannot start it: " + std::strerror(errno));
}

void add_common(CLI::App* parser, Flags& flags) {
  parser->add_option("-m,--model", flags.model, "The model (GGUF)")->required()->type_name("FNAME");
  parser
      ->add_option("--kv-codebook", flags.codebooks,
                   "Its codebook; more than one for a model with a draft model")
      ->required()
      ->type_name("FNAME");
  add_window_flags(parser, flags.window, flags.sinks);
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
      "Examples:\n"
      "  cqkv run -m model.gguf --kv-codebook model-cq.gguf -- -p 'Once upon a time' -n 64\n"
      "  cqkv run -m model.gguf --kv-codebook model-cq.gguf --chat -- -c 8192");
  return {parser,
          [flags](const std::vector<std::string>& passthrough) {
            return start(*flags, flags->chat ? "llama-cli" : "llama-completion", passthrough);
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
      "Example:\n"
      "  cqkv serve -m model.gguf --kv-codebook model-cq.gguf -- -c 32768 -np 4 --port 8080");
  return {parser,
          [flags](const std::vector<std::string>& passthrough) {
            return start(*flags, "llama-server", passthrough);
          },
          /*takes_passthrough=*/true};
}

}  // namespace cqkv::app
