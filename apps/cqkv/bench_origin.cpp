// See bench_origin.h.
#include "bench_origin.h"

#include <fstream>
#include <string>
#include <thread>

#include <ggml.h>

#include "cqkv/isa.h"

namespace cqkv::app {
namespace {

// Linux on x86 has a line "model name : ..." for each processor.
nlohmann::ordered_json cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) {
      return line.substr(line.find(": ") + 2);
    }
  }
  return nullptr;
}

}  // namespace

nlohmann::ordered_json bench_origin() {
  nlohmann::ordered_json out;
  out["tool"] = "cqkv " CQKV_VERSION;
  out["ggml"] = ggml_version();
  out["instruction_set"] = active_isa();
  out["cpu"] = cpu_name();
  out["hardware_threads"] = std::thread::hardware_concurrency();
  return out;
}

}  // namespace cqkv::app
