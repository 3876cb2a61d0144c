// `cqkv find`: prints the path of the codebook that run and serve would use for a model; for
// programs that load the device themselves.
#include <cstdio>
#include <memory>

#include "codebook_file/kv_shape.h"
#include "codebook_search.h"
#include "command.h"
#include "flag_values.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::string model;
  CodebookChoice codebooks;
};

Outcome execute(const Flags& flags) {
  const auto paths = codebooks_for(flags.model, flags.codebooks, "cqkv find");
  if (!paths.ok()) {
    Outcome outcome(paths.status());
    const bool is_model = read_kv_shape(flags.model).ok();
    outcome.exit_code = is_model && !flags.codebooks.learn ? kExitNothingFound : kExitFailure;
    return outcome;
  }
  for (const std::string& path : *paths) {
    std::printf("%s\n", path.c_str());
  }
  return {};
}

}  // namespace

Command add_find(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("find", "Print the codebook that run and serve would use");
  const auto flags = std::make_shared<Flags>();
  add_file(parser, "-m,--model", flags->model, "The model (GGUF)")->required();
  add_search_flags(parser, flags->codebooks);
  parser->footer(
      "Looks for *.cq-*.gguf beside the model, in ~/.cache/cqkv/codebooks, and among the "
      "codebooks\n"
      "that come with cqkv. Exit code 3: there is none.\n"
      "Example:\n"
      "  cqkv find -m model.gguf --kv 0.5 --learn");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
