// The codebook of a model when none is named: where it is looked for, and learning one if there is
// none. What is in a codebook is codebook_file's, whether it fits places.h's.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cqkv/status.h"

namespace cqkv::app {

/// What a command was told about codebooks.
struct CodebookChoice {
  std::vector<std::string> paths;  ///< --kv-codebook
  double bits = 0;                 ///< --kv; 0: not given, 1
  bool learn = false;              ///< --learn
};

/// --kv-codebook, --kv and --learn.
void add_codebook_flags(CLI::App* parser, CodebookChoice& choice);

/// --kv and --learn alone.
std::vector<CLI::Option*> add_search_flags(CLI::App* parser, CodebookChoice& choice);

/// The files that were named or, if none was, the one codebook of `choice.bits` a channel that fits
/// the model: the first file *.cq-*.gguf beside the model, in codebook_folder(), and of those that
/// come with cqkv. It must have the model's fingerprint; named NAME.cq-*.gguf beside NAME.gguf one
/// that names no model will do. With `choice.learn` it is learned if there is none, by
/// `cqkv calibrate`, into codebook_folder(). Which one is used is said on standard error, as `who`.
///
/// @return kNotFound, with the places and what there is of other bits, if there is none; the errors
///   of read_kv_shape; those of check_codebooks for files that were named.
Result<std::vector<std::string>> codebooks_for(const std::string& model_path,
                                               const CodebookChoice& choice,
                                               const std::string& who);

/// `codebooks` in CQKV_CACHE_DIR, XDG_CACHE_HOME/cqkv or ~/.cache/cqkv.
std::string codebook_folder();

/// Where `cqkv calibrate` writes without -o: beside the model, where codebooks_for looks first. Has
/// {config} in it.
std::string default_output(const std::string& model_path);

}  // namespace cqkv::app
