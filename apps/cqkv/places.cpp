// See places.h.
#include "places.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include <unistd.h>

#include "cqkv/codebook_file.h"

#include "calibration/fingerprint.h"
#include "command.h"
#include "core/atomic_file.h"

namespace cqkv::app {
namespace {

constexpr std::array<const char*, 3> kTexts = {"wikitext2-train-1200k.txt", "code-calib.txt",
                                               "gsm8k-train-800.jsonl"};

// The project's own texts: beside the programs of a Python package, or in the source tree.
std::filesystem::path text_folder() {
  const std::filesystem::path packaged =
      std::filesystem::path(program_folder()).parent_path() / "data";
  std::error_code error;
  return std::filesystem::exists(packaged / kTexts[0], error) ? packaged
                                                              : std::filesystem::path(CQKV_TEXTS);
}

// Two models of one shape differ in their norms; an unknown hash (0) proves nothing.
Status check_fingerprint(const Codebook& codebook, const std::string& path,
                         const ModelKvShape& model) {
  const auto& wanted = codebook.origin.model_fingerprint;
  if (wanted.empty()) {
    return {};
  }
  const auto found = model_fingerprint(model.path);
  if (!found.ok()) {
    return found.status();
  }
  for (std::size_t il = 0; il < wanted.size() && il < found->size(); il++) {
    if (wanted[il] != 0 && (*found)[il] != 0 && wanted[il] != (*found)[il]) {
      return {StatusCode::kMismatch,
              "codebook " + path + " was made for the weights of '" + codebook.origin.model_name +
                  "', but " + model.path + " ('" + model.name + "') has others: layer " +
                  std::to_string(il) + " has fingerprint " + hex64((*found)[il]) + ", want " +
                  hex64(wanted[il]) + "; make a codebook for it with cqkv calibrate"};
    }
  }
  return {};
}

}  // namespace

std::string program_folder() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::string(".") : program.parent_path().string();
}

std::string host_program(const std::string& name) {
  std::filesystem::path program = std::filesystem::path(program_folder()) / name;
  const char* path = std::getenv("PATH");
  std::stringstream folders(path == nullptr ? "" : path);
  for (std::string folder; ::access(program.c_str(), X_OK) != 0;
       program = std::filesystem::path(folder) / name) {
    if (!std::getline(folders, folder, ':')) {
      return program_folder() + "/" + name;
    }
  }
  return program.string();
}

std::string device_library() {
  const char* chosen = std::getenv("CQKV_DEVICE");
  return chosen != nullptr && *chosen != '\0' ? std::string(chosen)
                                              : program_folder() + "/libggml-cq.so";
}

Result<std::vector<std::string>> calibration_texts() {
  const std::filesystem::path folder = text_folder();
  std::vector<std::string> paths;
  for (const char* name : kTexts) {
    paths.push_back((folder / name).string());
    const Status readable = check_text(paths.back());
    if (!readable.ok()) {
      return Status(readable.code(),
                    "the project's own texts: " + readable.message() + "; name your own with -f");
    }
  }
  return paths;
}

std::string shipped_codebooks() {
  return (text_folder() / "codebooks").string();
}

Status check_programs(const std::string& program) {
  if (!std::filesystem::exists(program)) {
    return {StatusCode::kNotFound,
            program +
                " does not exist, nor is it on PATH; 'make build' in cqkv's source puts "
                "llama.cpp's programs beside cqkv (from Python: cqkv.Llama)"};
  }
  if (!std::filesystem::exists(device_library())) {
    return {StatusCode::kNotFound, device_library() +
                                       ": the KV device is not there; 'make build' "
                                       "puts it beside cqkv"};
  }
  return {};
}

Status check_output(const std::string& path) {
  if (path.empty() || path == "-") {
    return {};
  }
  AtomicFile trial(path);  // gone again at the end
  return trial.open();
}

Status check_text(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return io_error(path + ": is a folder, want a text file");
  }
  if (::access(path.c_str(), R_OK) != 0) {
    const int reason = errno;
    return {reason == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError,
            path + ": cannot open the text: " + std::strerror(reason)};
  }
  return {};
}

Status check_codebook(const Codebook& codebook, const std::string& path,
                      const ModelKvShape& model) {
  if (path.find(':') != std::string::npos) {
    return invalid_argument("codebook '" + path +
                            "': ':' separates paths for the KV device; rename the file");
  }
  CQKV_RETURN_IF_ERROR(check_fits(codebook, path, model));
  return check_fingerprint(codebook, path, model);
}

Status check_codebooks(const std::string& model_path, const std::vector<std::string>& codebooks) {
  const auto shape = read_kv_shape(model_path);
  if (!shape.ok()) {
    return shape.status();
  }
  for (const auto& path : codebooks) {
    const auto codebook = read_codebook(path);
    if (!codebook.ok()) {
      return codebook.status();
    }
    CQKV_RETURN_IF_ERROR(check_codebook(*codebook, path, *shape));
  }
  return {};
}

}  // namespace cqkv::app
