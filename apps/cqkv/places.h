// Where the programs and libraries beside cqkv are, and the checks of a model and its
// codebooks that every command makes before it starts anything.
#pragma once

#include <string>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "codebook_file/kv_shape.h"

namespace cqkv::app {

/// The folder of the running cqkv, symbolic links resolved.
std::string program_folder();

/// A program of llama.cpp's: beside cqkv or, if it is not there, the first on PATH; beside cqkv if
/// it is nowhere.
std::string host_program(const std::string& name);

/// libggml-cq.so beside cqkv; the environment variable CQKV_DEVICE overrides.
std::string device_library();

/// The project's own calibration texts, prose, code and conversation: those of the Python package
/// that cqkv is in, or in the folder that it was built from. kNotFound if they are not there.
Result<std::vector<std::string>> calibration_texts();

/// The folder of the codebooks that come with cqkv: `codebooks` in that of the texts.
std::string shipped_codebooks();

/// That a program of llama.cpp's, by its host_program, and the KV device exist.
Status check_programs(const std::string& program);

/// That a file can be written under this name, found out before the work that fills it; "-"
/// (standard output) and "" (none) always.
Status check_output(const std::string& path);

/// That a text exists and can be read.
Status check_text(const std::string& path);

/// That a codebook that was read from `path` has a path that the KV device takes, and was made for
/// this model (names, shapes and, where known, the fingerprint of the weights). kMismatch names
/// both.
Status check_codebook(const Codebook& codebook, const std::string& path, const ModelKvShape& model);

/// That every codebook can be read and passes check_codebook; its errors.
Status check_codebooks(const std::string& model_path, const std::vector<std::string>& codebooks);

}  // namespace cqkv::app
