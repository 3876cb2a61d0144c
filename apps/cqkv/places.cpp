// See places.h.
#include "places.h"

#include <cstdlib>
#include <filesystem>

#include "codebook_file/codebook_file.h"
#include "codebook_file/model_shape.h"

namespace cqkv::app {

std::string program_folder() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::string(".") : program.parent_path().string();
}

std::string device_library() {
  const char* chosen = std::getenv("CQKV_DEVICE");
  return chosen != nullptr && *chosen != '\0' ? std::string(chosen)
                                              : program_folder() + "/libggml-cq.so";
}

Status check_codebooks(const std::string& model_path, const std::vector<std::string>& codebooks) {
  const auto shape = read_model_shape(model_path);
  if (!shape.ok()) {
    return shape.status();
  }
  for (const auto& path : codebooks) {
    const auto codebook = read_codebook(path);
    if (!codebook.ok()) {
      return codebook.status();
    }
    CQKV_RETURN_IF_ERROR(check_fits(*codebook, path, *shape));
  }
  return {};
}

}  // namespace cqkv::app
