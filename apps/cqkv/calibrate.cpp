// `cqkv calibrate`: learns a codebook on a model and texts.
#include <memory>

#include "command.h"

namespace cqkv::app {

Command add_calibrate(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("calibrate", "Learn a codebook for a model");
  return {parser, [](const std::vector<std::string>&) {
            return Outcome(unsupported("not in this build yet"));
          }};
}

}  // namespace cqkv::app
