// See codebook_search.h.
#include "codebook_search.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "cqkv/codebook_file.h"

#include "calibration/calibrate.h"
#include "calibration/fingerprint.h"
#include "child_process.h"
#include "codebook_file/kv_shape.h"
#include "command.h"
#include "core/hash.h"
#include "flag_values.h"
#include "places.h"

namespace cqkv::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = ".cq-";  // in the name of a codebook among models

struct Found {
  std::string path;
  double bits = 0;
};

// GGUF files in a folder with `part` in their names, sorted; none if there is no such folder.
std::vector<std::string> files_in(const fs::path& folder, const std::string& part) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), last; !error && it != last; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.find(part) != std::string::npos && name.ends_with(".gguf")) {
      paths.push_back(it->path().string());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

fs::path folder_of(const std::string& model_path) {
  const fs::path parent = fs::path(model_path).parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

std::string stem_of(const std::string& model_path) {
  return fs::path(model_path).stem().string();
}

// Named after the model, and beside it.
bool is_named(const std::string& path, const std::string& model_path) {
  return fs::path(path).parent_path() == folder_of(model_path) &&
         fs::path(path).filename().string().starts_with(stem_of(model_path) + kMark);
}

// Files to look at, in the order of preference.
std::vector<std::string> candidates(const std::string& model_path) {
  std::vector<std::string> paths = files_in(folder_of(model_path), kMark);
  std::stable_partition(paths.begin(), paths.end(),
                        [&](const std::string& path) { return is_named(path, model_path); });
  for (const std::string& folder : {codebook_folder(), shipped_codebooks()}) {
    const std::vector<std::string> more = files_in(folder, "");
    paths.insert(paths.end(), more.begin(), more.end());
  }
  return paths;
}

bool has_fingerprint(const Codebook& codebook) {
  const auto& layers = codebook.origin.model_fingerprint;
  return std::any_of(layers.begin(), layers.end(), [](std::uint64_t layer) { return layer != 0; });
}

// The codebook if it is one of this model; where its file is named after the model, an unknown
// fingerprint will do, and one that is not of the model is worth a line.
std::optional<Found> examine(const std::string& path, const ModelKvShape& model,
                             const std::string& who) {
  const bool named = is_named(path, model.path);
  const auto codebook = read_codebook(path);
  const Status status = codebook.ok() ? check_codebook(*codebook, path, model) : codebook.status();
  if (!status.ok()) {
    if (named) {
      std::fprintf(stderr, "%s: skipping a codebook: %s\n", who.c_str(), status.message().c_str());
    }
    return std::nullopt;
  }
  if (!named && !has_fingerprint(*codebook)) {
    return std::nullopt;
  }
  return Found{path, codebook->bits_per_channel()};
}

// A budget is met from below, and never wholly.
bool has_bits(const Found& found, double bits) {
  return found.bits <= 1.001 * bits && found.bits >= 0.95 * bits;
}

// The first of the wanted bits; `others` are those looked at before it.
std::optional<Found> search(const ModelKvShape& model, double bits, const std::string& who,
                            std::vector<Found>& others) {
  for (const std::string& path : candidates(model.path)) {
    auto found = examine(path, model, who);
    if (found && has_bits(*found, bits)) {
      return found;
    }
    if (found) {
      others.push_back(*std::move(found));
    }
  }
  return std::nullopt;
}

std::string bits_text(double bits) {
  return format("%.2f bits a channel", bits);
}

Status nothing_found(const std::string& model_path, double bits, const std::vector<Found>& others) {
  std::string text = "no codebook of " + bits_text(bits) + " for " + model_path + ": looked for *" +
                     kMark + "*.gguf in " + folder_of(model_path).string() + " and " +
                     codebook_folder() + " and among those that come with cqkv";
  for (const Found& other : others) {
    text += "; there is " + other.path + " of " + bits_text(other.bits) + " (--kv " +
            format("%g", std::round(other.bits * 100) / 100) + ")";
  }
  return {StatusCode::kNotFound,
          text +
              "; add --learn to learn one now from the texts that come along (minutes), or name "
              "one with --kv-codebook"};
}

// Models of one name must not take each other's codebook.
Result<std::string> learned_path(const std::string& model_path, double bits) {
  const auto fingerprint = model_fingerprint(model_path);
  if (!fingerprint.ok()) {
    return fingerprint.status();
  }
  const std::uint64_t hash =
      hash_bytes(fingerprint->data(), fingerprint->size() * sizeof(std::uint64_t));
  return codebook_folder() + "/" + stem_of(model_path) + "-" + hex64(hash).substr(0, 8) + ".cq-" +
         budget_name(bits) + ".gguf";
}

Result<std::string> learn_codebook(const std::string& model_path, double bits) {
  auto path = learned_path(model_path, bits);
  if (!path.ok() || (fs::exists(*path) && check_codebooks(model_path, {*path}).ok())) {
    return path;
  }
  std::error_code error;
  fs::create_directories(codebook_folder(), error);
  if (error) {
    return io_error(codebook_folder() + ": " + error.message());
  }
  CQKV_RETURN_IF_ERROR(run_child_shown({program_folder() + "/cqkv", "calibrate", "-m", model_path,
                                        "-o", *path, "--bits", format("%g", bits)}));
  return *path;
}

}  // namespace

void add_codebook_flags(CLI::App* parser, CodebookChoice& choice) {
  CLI::Option* named = add_files(parser, "--kv-codebook", choice.paths,
                                 "Its codebook; more than one for a model with a draft model "
                                 "[default: what `cqkv find` prints]");
  for (CLI::Option* flag : add_search_flags(parser, choice)) {
    flag->excludes(named);
  }
}

std::vector<CLI::Option*> add_search_flags(CLI::App* parser, CodebookChoice& choice) {
  return {parser
              ->add_option("--kv", choice.bits,
                           "Bits a channel of the codebook to look for [default: 1]")
              ->check(real_number(0.125, 4))
              ->type_name("BITS"),
          parser->add_flag("--learn", choice.learn,
                           "Learn the codebook if there is none, once, from texts that come with "
                           "cqkv (llama, qwen2, qwen3, gemma3)")};
}

Result<std::vector<std::string>> codebooks_for(const std::string& model_path,
                                               const CodebookChoice& choice,
                                               const std::string& who) {
  if (!choice.paths.empty()) {
    CQKV_RETURN_IF_ERROR(check_codebooks(model_path, choice.paths));
    return choice.paths;
  }
  const auto model = read_kv_shape(model_path);
  if (!model.ok()) {
    return model.status();
  }
  const double bits = choice.bits > 0 ? choice.bits : 1.0;
  std::vector<Found> others;
  const auto found = search(*model, bits, who, others);
  if (found) {
    std::fprintf(stderr, "%s: using %s (%s)\n", who.c_str(), found->path.c_str(),
                 bits_text(found->bits).c_str());
    return std::vector<std::string>{found->path};
  }
  if (!choice.learn) {
    return nothing_found(model_path, bits, others);
  }
  const auto learned = learn_codebook(model_path, bits);
  if (!learned.ok()) {
    return learned.status();
  }
  return std::vector<std::string>{*learned};
}

std::string codebook_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (!variable("CQKV_CACHE_DIR").empty()) {
    return variable("CQKV_CACHE_DIR") + "/codebooks";
  }
  if (!variable("XDG_CACHE_HOME").empty()) {
    return variable("XDG_CACHE_HOME") + "/cqkv/codebooks";
  }
  return variable("HOME") + "/.cache/cqkv/codebooks";
}

std::string default_output(const std::string& model_path) {
  return (folder_of(model_path) / (stem_of(model_path) + ".cq-{config}.gguf")).string();
}

}  // namespace cqkv::app
