// A text file as tokens, read the way llama.cpp's programs read `-f`.
#pragma once

#include <string>
#include <vector>

#include <llama.h>

#include "cqkv/status.h"

namespace cqkv::eval {

/// The tokens of the whole file, one line break at its end dropped; with `add_special`
/// what the model puts around a text (BOS) is added.
/// @return kNotFound or kIoError with the path and the system's reason, kInvalidArgument
///   for an empty file.
Result<std::vector<llama_token>> tokenize_file(const llama_vocab* vocab, const std::string& path,
                                               bool add_special);

}  // namespace cqkv::eval
