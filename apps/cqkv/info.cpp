// `cqkv info`: versions, instruction sets, whether the KV device loads here, and what a
// codebook's cache would take: bits, bytes, tokens.
#include <cstdio>
#include <memory>
#include <optional>

#include <ggml.h>
#include <llama.h>
#include <nlohmann/json.hpp>

#include "cqkv/codebook_file.h"
#include "cqkv/isa.h"

#include "codebook_file/kv_shape.h"
#include "command.h"
#include "eval/cache_size.h"
#include "eval/kv_device.h"
#include "flag_values.h"
#include "llama/log.h"
#include "places.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::string model;
  std::string codebook;
  std::size_t n_ctx = 4096;
  std::size_t n_parallel = 1;
  WindowOverride window;
  bool json = false;
};

// Of one cache of n_ctx tokens that n_parallel sequences share.
Result<nlohmann::ordered_json> cache_json(const Flags& flags) {
  const auto codebook = read_codebook(flags.codebook);
  if (!codebook.ok()) {
    return codebook.status();
  }
  const auto model = read_kv_shape(flags.model);
  if (!model.ok()) {
    return model.status();
  }
  CQKV_RETURN_IF_ERROR(check_fits(*codebook, flags.codebook, *model));
  const WindowSpec window = flags.window.spec_of(*codebook);
  // libllama rounds contexts up to whole 256 cells.
  const std::size_t n_cells = (flags.n_ctx + 255) / 256 * 256;
  const eval::CacheSize size =
      eval::coded_cache_size(*codebook, *model, n_cells, window, flags.n_parallel);
  nlohmann::ordered_json out;
  out["codebook"] = codebook->origin.name;
  out["identity"] = hex64(codebook->identity());
  out["tokens"] = n_cells;
  out["sequences"] = flags.n_parallel;
  out["window"] = window.window;
  out["sinks"] = window.sinks;
  out["bits_codes"] = size.bits_codes;
  out["bits_all_in"] = size.bits_all_in;
  out["cache_bytes"] = size.cache_bytes();
  out["code_bytes"] = size.code_bytes;
  out["exact_bytes"] = size.exact_bytes;
  out["window_bytes"] = size.window_bytes;
  out["spare_bytes"] = size.spare_bytes;
  out["position_bytes"] = size.position_bytes;
  out["codebook_bytes"] = size.codebook_bytes;
  out["cache_bytes_f16"] = size.f16_bytes;
  return out;
}

nlohmann::ordered_json collect() {
  nlohmann::ordered_json out;
  out["cqkv"] = CQKV_VERSION;
  out["ggml"] = ggml_version();
  out["libllama"] = llama_version();
  out["instruction_set"] = active_isa();
  out["instruction_sets_supported"] = supported_isas();
  out["device_library"] = device_library();
  catch_llama_log(false);
  const auto device = eval::KvDevice::load(device_library());
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
  const auto supported = info.at("instruction_sets_supported").get<std::vector<std::string>>();
  std::printf("instruction sets  %s in use; usable here: %s\n", text("instruction_set").c_str(),
              joined(supported, ", ").c_str());
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

void print_cache(const nlohmann::ordered_json& cache) {
  const auto number = [&](const char* key) { return cache.at(key).get<double>(); };
  const auto mebibytes = [&](const char* key) { return number(key) / (1024.0 * 1024.0); };
  std::printf("cache             %s: %.0f tokens, window %.0f and %.0f sinks of %.0f sequences\n",
              cache.at("codebook").get<std::string>().c_str(), number("tokens"), number("window"),
              number("sinks"), number("sequences"));
  std::printf(
      "                  %.2f MiB (16-bit: %.2f MiB): codes %.2f, window %.2f, spare rows "
      "%.2f, positions %.2f, exact layers %.2f\n",
      mebibytes("cache_bytes"), mebibytes("cache_bytes_f16"), mebibytes("code_bytes"),
      mebibytes("window_bytes"), mebibytes("spare_bytes"), mebibytes("position_bytes"),
      mebibytes("exact_bytes"));
  std::printf(
      "                  %.3f bits a channel in codes, %.3f all in (with %.2f MiB of "
      "centroids)\n",
      number("bits_codes"), number("bits_all_in"), mebibytes("codebook_bytes"));
}

Outcome execute(const Flags& flags) {
  if (flags.model.empty() != flags.codebook.empty()) {
    return Usage{"-m and --kv-codebook belong together: got only one of them"};
  }
  auto info = collect();
  if (!flags.codebook.empty()) {
    auto cache = cache_json(flags);
    if (!cache.ok()) {
      return cache.status();
    }
    info["cache"] = *std::move(cache);
  }
  if (flags.json) {
    return write_json("-", info);
  }
  print_people(info);
  if (info.contains("cache")) {
    print_cache(info.at("cache"));
  }
  return {};
}

}  // namespace

Command add_info(CLI::App& app) {
  CLI::App* parser = app.add_subcommand(
      "info", "Show versions, whether the KV device loads, and what a cache would take");
  const auto flags = std::make_shared<Flags>();
  add_file(parser, "-m,--model", flags->model, "A model, for the size of its coded cache");
  add_file(parser, "--kv-codebook", flags->codebook, "Its codebook");
  add_number(parser, "-c,--ctx-size", flags->n_ctx, kCellRange,
             "Tokens of the cache, all sequences together");
  add_number(parser, "--parallel", flags->n_parallel, kSequenceRange,
             "Also -np: sequences that share it");
  add_window_flags(parser, flags->window);
  parser->add_flag("--json", flags->json, "As JSON");
  parser->footer(
      "Examples:\n"
      "  cqkv info --json\n"
      "  cqkv info -m model.gguf --kv-codebook model-cq.gguf -c 32768 -np 8");
  return {parser, [flags](const std::vector<std::string>&) -> Outcome { return execute(*flags); }};
}

}  // namespace cqkv::app
