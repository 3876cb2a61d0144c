// Which of llama.cpp's own flags and environment variables would switch coding off or
// move the cache away, and are therefore refused after `--`.
#pragma once

#include <string>
#include <vector>

#include "cqkv/status.h"

namespace cqkv::app {

/// kInvalidArgument, naming the flag, its value and what to do, for the first conflict.
Status check_host_flags(const std::vector<std::string>& arguments);

/// The same for the LLAMA_ARG_* variables of this process, which the host reads too.
Status check_host_environment();

}  // namespace cqkv::app
