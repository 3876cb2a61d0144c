// The log of libllama and ggml caught in memory: our libraries print nothing themselves, but what
// libllama logged last explains most of its failures.
#pragma once

#include <string>

namespace cqkv {

/// Catches the log of libllama and ggml from now on, for the whole process; with
/// `echo` it goes on to stderr as well. Not safe beside other libllama calls.
void catch_llama_log(bool echo);

/// The last error lines caught since the previous call, joined by "; ", or "".
std::string take_llama_errors();

}  // namespace cqkv
