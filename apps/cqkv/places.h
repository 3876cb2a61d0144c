// Where the programs and libraries beside cqkv are, and the checks of a model and its
// codebooks that every command makes before it starts anything.
#pragma once

#include <string>
#include <vector>

#include "cqkv/status.h"

namespace cqkv::app {

/// The folder of the running cqkv, symbolic links resolved.
std::string program_folder();

/// libggml-cq.so beside cqkv; the environment variable CQKV_DEVICE overrides.
std::string device_library();

/// That a program of llama.cpp's, started from here, and the KV device exist.
Status check_programs(const std::string& program);

/// That every codebook can be read and was made for this model (names, shapes and, where
/// known, the fingerprint of the weights). kMismatch names both.
Status check_codebooks(const std::string& model_path, const std::vector<std::string>& codebooks);

}  // namespace cqkv::app
