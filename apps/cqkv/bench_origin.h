// What a benchmark's figures were measured with, as its JSON begins.
#pragma once

#include <nlohmann/json.hpp>

namespace cqkv::app {

/// Keys tool, ggml, instruction_set, cpu and hardware_threads. The name of the processor is the
/// operating system's, null where that does not tell.
nlohmann::ordered_json bench_origin();

}  // namespace cqkv::app
