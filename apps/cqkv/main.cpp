// The program cqkv: finds the subcommand, turns llama.cpp's flags into ones that CLI11
// reads, and maps outcomes to exit codes: 0 done, 1 failed, 2 wrong use.
#include <array>
#include <cstdio>
#include <exception>
#include <iterator>
#include <utility>

#include "cqkv/isa.h"

#include "command.h"
#include "suggestions.h"

namespace cqkv::app {
namespace {

// CLI11 reads "-ub" as "-u b"; llama.cpp means one flag.
std::string long_form(const std::string& argument) {
  constexpr std::array<std::pair<const char*, const char*>, 3> kFlags = {
      {{"-ub", "--ubatch-size"}, {"-nb", "--no-bos"}, {"-np", "--parallel"}}};
  for (const auto& [flag, full] : kFlags) {
    if (argument == flag) {
      return full;
    }
  }
  return argument;
}

// Results that did not arrive are a failure too.
int finish(const std::string& command, Outcome outcome) {
  if (outcome.exit_code == kExitOk) {
    outcome = flush_output();
  }
  if (outcome.exit_code == kExitOk) {
    return kExitOk;
  }
  const std::string who = command.empty() ? "cqkv" : "cqkv " + command;
  std::fprintf(stderr, "%s: %s\n", who.c_str(), outcome.message.c_str());
  if (outcome.exit_code == kExitUsage) {
    std::fprintf(stderr, "%s: try '%s --help'\n", who.c_str(), who.c_str());
  }
  return outcome.exit_code;
}

struct Arguments {
  std::vector<std::string> own;          // before "--"
  std::vector<std::string> passthrough;  // after it
  bool divided = false;
};

Arguments divide(int argc, char** argv) {
  Arguments result;
  for (int i = 1; i < argc; i++) {
    const std::string argument = argv[i];
    if (!result.divided && argument == "--") {
      result.divided = true;
    } else if (result.divided) {
      result.passthrough.push_back(argument);
    } else {
      result.own.push_back(long_form(argument));
    }
  }
  return result;
}

// "bench attention": the words that choose a command.
std::string full_name(const CLI::App* parser) {
  const CLI::App* group = parser->get_parent();
  return group->get_parent() == nullptr ? parser->get_name()
                                        : full_name(group) + " " + parser->get_name();
}

const Command* chosen(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (command.parser->parsed()) {
      return &command;
    }
  }
  return nullptr;
}

// What to say of words that CLI11 could not parse, in their order.
std::string parse_failure(const CLI::App& app, const CLI::App& bench, const Command* command,
                          const std::vector<std::string>& words, const CLI::ParseError& error) {
  if (command == nullptr) {
    const bool in_bench = bench.parsed();
    return no_command_text(in_bench ? bench : app,
                           {words.begin() + (in_bench ? 1 : 0), words.end()});
  }
  for (const CLI::App* parser : {&app, &bench, static_cast<const CLI::App*>(command->parser)}) {
    const std::vector<std::string> unread = parser->remaining();
    if (!unread.empty()) {
      return unexpected_text(*parser, unread.front());
    }
  }
  return error.what();
}

int run(int argc, char** argv) {
  CLI::App app(
      "cqkv keeps the KV cache of a language model at about 1 bit a channel inside llama.cpp.",
      "cqkv");
  app.set_version_flag("--version", "cqkv " CQKV_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  cqkv calibrate -m model.gguf -f text.txt -o model-cq.gguf --config 8c8b\n"
      "  cqkv perplexity -m model.gguf --kv-codebook model-cq.gguf -f test.txt\n"
      "  cqkv serve -m model.gguf --kv-codebook model-cq.gguf -- -c 32768 --port 8080\n"
      "Each command has its own --help. Exit codes: 0 done, 1 failed, 2 wrong use.");
  CLI::App* bench = app.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(1);
  const std::vector<Command> commands = {add_calibrate(app),
                                         add_perplexity(app),
                                         add_run(app),
                                         add_serve(app),
                                         add_find(app),
                                         add_inspect(app),
                                         add_info(app),
                                         add_bench_attention(*bench),
                                         add_bench_encode(*bench),
                                         add_bench_model(*bench)};
  const Arguments arguments = divide(argc, argv);
  try {
    // CLI11 pops from the back.
    app.parse(std::vector<std::string>(arguments.own.rbegin(), arguments.own.rend()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);  // prints the help or the version
      return finish("", {});
    }
    const Command* command = chosen(commands);
    return finish(command == nullptr ? "" : full_name(command->parser),
                  Usage{parse_failure(app, *bench, command, arguments.own, error)});
  }
  const Command* command = chosen(commands);
  const std::string name = full_name(command->parser);
  if (arguments.divided && !command->takes_passthrough) {
    return finish(name, Usage{"takes nothing after '--'"});
  }
  const Status isa = isa_status();
  if (!isa.ok()) {
    return finish(name, isa);
  }
  return finish(name, command->execute(arguments.passthrough));
}

}  // namespace
}  // namespace cqkv::app

int main(int argc, char** argv) {
  try {
    return cqkv::app::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("cqkv: not enough memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cqkv: internal error: %s\n", error.what());
  }
  return cqkv::app::kExitFailure;
}
