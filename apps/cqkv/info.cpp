// `cqkv info`: versions, instruction sets, and whether the KV device loads here.
#include <cstdio>
#include <memory>

#include <ggml.h>
#include <llama.h>
#include <nlohmann/json.hpp>

#include "cqkv/isa.h"

#include "command.h"
#include "eval/kv_device.h"
#include "eval/llama_objects.h"
#include "places.h"

namespace cqkv::app {
namespace {

nlohmann::ordered_json collect() {
  nlohmann::ordered_json out;
  out["cqkv"] = CQKV_VERSION;
  out["ggml"] = ggml_version();
  out["libllama"] = llama_version();
  out["instruction_set"] = active_isa();
  out["instruction_sets_supported"] = supported_isas();
  out["device_library"] = device_library();
  eval::catch_llama_log(false);
  const auto device = eval::KvDevice::load(device_library(), {});
  out["device_loads"] = device.ok();
  out["devices"] = nlohmann::ordered_json::array();
  if (!device.ok()) {
    out["device_error"] = device.status().message();
    return out;
  }
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device->device());
  for (std::size_t i = 0; i < ggml_backend_reg_dev_count(registry); i++) {
    ggml_backend_dev_t entry = ggml_backend_reg_dev_get(registry, i);
    out["devices"].push_back({{"name", ggml_backend_dev_name(entry)},
                              {"description", ggml_backend_dev_description(entry)}});
  }
  return out;
}

void print_people(const nlohmann::ordered_json& info) {
  const auto text = [&](const char* key) { return info.at(key).get<std::string>(); };
  std::printf("cqkv              %s\n", text("cqkv").c_str());
  std::printf("ggml              %s\n", text("ggml").c_str());
  std::printf("libllama          %s\n", text("libllama").c_str());
  std::string supported;
  for (const auto& name : info.at("instruction_sets_supported")) {
    supported += (supported.empty() ? "" : ", ") + name.get<std::string>();
  }
  std::printf("instruction sets  %s in use; usable here: %s\n", text("instruction_set").c_str(),
              supported.c_str());
  std::printf("KV device         %s\n", text("device_library").c_str());
  if (!info.at("device_loads").get<bool>()) {
    std::printf("                  does not load: %s\n", text("device_error").c_str());
    return;
  }
  for (const auto& device : info.at("devices")) {
    std::printf("                  loads: %s (%s)\n", device.at("name").get<std::string>().c_str(),
                device.at("description").get<std::string>().c_str());
  }
}

}  // namespace

Command add_info(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("info", "Show versions and whether the KV device loads");
  const auto json = std::make_shared<bool>(false);
  parser->add_flag("--json", *json, "As JSON");
  parser->footer(
      "Example:\n"
      "  cqkv info --json");
  return {parser, [json](const std::vector<std::string>&) -> Outcome {
            const auto info = collect();
            if (*json) {
              return write_text("-", info.dump(2) + "\n");
            }
            print_people(info);
            return {};
          }};
}

}  // namespace cqkv::app
