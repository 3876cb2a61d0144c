// What of llama.cpp's own flags and environment variables concerns the KV device: which
// would switch coding off or move the cache away, and are therefore refused after `--`,
// and how many sequences there will be.
#pragma once

#include <string>
#include <vector>

#include "cqkv/status.h"

namespace cqkv::app {

/// kInvalidArgument, naming the flag, its value and what to do, for the first conflict.
Status check_host_flags(const std::vector<std::string>& arguments);

/// The same for the LLAMA_ARG_* variables of this process, which the host reads too.
Status check_host_environment();

/// How many sequences the host will keep at once: the last -np in the arguments, else
/// LLAMA_ARG_N_PARALLEL, else `by_default`, which also stands for "auto" (negative numbers).
int count_sequences(const std::vector<std::string>& arguments, int by_default);

}  // namespace cqkv::app
