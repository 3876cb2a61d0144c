// `cqkv inspect`: what a codebook file holds and where it comes from.
#include <algorithm>
#include <cstdio>
#include <memory>

#include <nlohmann/json.hpp>

#include "cqkv/codebook_file.h"

#include "command.h"
#include "core/hash.h"
#include "flag_values.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::string path;
  bool json = false;
};

constexpr KvKind kBothKinds[] = {KvKind::kKey, KvKind::kValue};

// One number for people to compare; 0 if no layer's hash is known.
std::uint64_t fingerprint_summary(const Codebook& codebook) {
  const auto& hashes = codebook.origin.model_fingerprint;
  const bool known = std::any_of(hashes.begin(), hashes.end(), [](auto hash) { return hash != 0; });
  return known ? hash_bytes(hashes.data(), hashes.size() * sizeof(hashes[0])) : 0;
}

std::size_t n_known_hashes(const Codebook& codebook) {
  const auto& hashes = codebook.origin.model_fingerprint;
  return static_cast<std::size_t>(
      std::count_if(hashes.begin(), hashes.end(), [](auto hash) { return hash != 0; }));
}

std::string side_text(const TensorCodebook* tensor) {
  if (tensor == nullptr) {
    return "exact";
  }
  return format("%-6s %d x %d", tensor->spec().name().c_str(), tensor->n_kv_heads(),
                tensor->head_dim());
}

void print_layers(const Codebook& codebook) {
  const auto text = [&](std::size_t il) {
    return format("%-16s  %-16s", side_text(codebook.layers[il].get(KvKind::kKey)).c_str(),
                  side_text(codebook.layers[il].get(KvKind::kValue)).c_str());
  };
  std::printf("\n%-9s  %-16s  %-16s (configuration, KV heads x head size)\n", "layers", "keys",
              "values");
  for (std::size_t il = 0; il < codebook.layers.size();) {
    std::size_t last = il;
    while (last + 1 < codebook.layers.size() && text(last + 1) == text(il)) {
      last++;
    }
    const std::string range =
        last == il ? std::to_string(il) : std::to_string(il) + "-" + std::to_string(last);
    std::printf("%-9s  %s\n", range.c_str(), text(il).c_str());
    il = last + 1;
  }
}

std::string held_out_text(const HeldOutLoss& loss) {
  if (loss.n_tokens == 0) {
    return "not measured";
  }
  return format("keys %.1f %%, values %.1f %% of the variance, on %u tokens",
                100 * static_cast<double>(loss.keys), 100 * static_cast<double>(loss.values),
                loss.n_tokens);
}

// The parts of a side's basis.
std::vector<std::string> basis_parts(const TensorBasis& basis) {
  std::vector<std::string> parts;
  for (const auto& [has, name] :
       {std::pair{basis.has_order(), "order"}, std::pair{basis.has_rotation(), "rotation"},
        std::pair{basis.has_metric(), "metric"}}) {
    if (has) {
      parts.emplace_back(name);
    }
  }
  return parts;
}

std::string bases_text(const Codebook& codebook) {
  std::size_t bytes = 0;
  int n_keys = 0;
  int n_values = 0;
  for (const auto& layer : codebook.layers) {
    for (const KvKind kind : kBothKinds) {
      const TensorCodebook* tensor = layer.get(kind);
      if (tensor != nullptr && !tensor->basis().plain()) {
        bytes += tensor->basis().bytes();
        (kind == KvKind::kKey ? n_keys : n_values)++;
      }
    }
  }
  return bytes == 0 ? "none: groups of neighbouring channels"
                    : format("keys of %d layers, values of %d, %.2f MiB", n_keys, n_values,
                             static_cast<double>(bytes) / (1024.0 * 1024.0));
}

void print_people(const Codebook& codebook) {
  const CodebookOrigin& origin = codebook.origin;
  const auto row = [](const char* name, const std::string& value) {
    std::printf("%-14s %s\n", name, value.empty() ? "-" : value.c_str());
  };
  row("name", origin.name);
  row("model", origin.model_name + " (" + origin.architecture + ")");
  row("license", origin.license);
  row("identity", hex64(codebook.identity()));
  row("fingerprint", n_known_hashes(codebook) == 0
                         ? "unknown"
                         : hex64(fingerprint_summary(codebook)) + " (" +
                               std::to_string(n_known_hashes(codebook)) + " of " +
                               std::to_string(codebook.layers.size()) + " layers)");
  row("bits/channel", format("%.4f", codebook.bits_per_channel()));
  row("centroids", format("%.2f MiB, bases included",
                          static_cast<double>(codebook.centroid_bytes()) / (1024.0 * 1024.0)));
  row("bases", bases_text(codebook));
  row("window, sinks", std::to_string(codebook.window) + ", " + std::to_string(codebook.sinks));
  row("weighting", origin.weighting);
  row("calibrated on", joined(origin.datasets, ", "));
  row("tokens", std::to_string(origin.n_tokens) + " in contexts of " +
                    std::to_string(origin.ctx_size) + ", seed " + std::to_string(origin.seed));
  row("held-out loss", held_out_text(origin.held_out));
  row("made by", origin.tool_version);
  print_layers(codebook);
}

nlohmann::ordered_json side_json(const TensorCodebook* tensor) {
  nlohmann::ordered_json out;
  out["config"] = tensor == nullptr ? "exact" : tensor->spec().name();
  if (tensor != nullptr) {
    out["group_dims"] = tensor->spec().group_dims();
    out["code_bits"] = tensor->spec().code_bits();
    out["n_kv_heads"] = tensor->n_kv_heads();
    out["head_dim"] = tensor->head_dim();
    out["bits_per_channel"] = tensor->spec().bits_per_channel();
    out["centroid_bytes"] = tensor->centroids().size_bytes();
    out["basis"] = basis_parts(tensor->basis());
    out["basis_bytes"] = tensor->basis().bytes();
  }
  return out;
}

// null where nothing was measured.
nlohmann::ordered_json held_out_json(const HeldOutLoss& loss) {
  if (loss.n_tokens == 0) {
    return nullptr;
  }
  return {{"n_tokens", loss.n_tokens}, {"k_loss", loss.keys}, {"v_loss", loss.values}};
}

nlohmann::ordered_json to_json(const Codebook& codebook, const std::string& path) {
  const CodebookOrigin& origin = codebook.origin;
  nlohmann::ordered_json out;
  out["path"] = path;
  out["name"] = origin.name;
  out["architecture"] = origin.architecture;
  out["model_name"] = origin.model_name;
  out["license"] = origin.license;
  out["identity"] = hex64(codebook.identity());
  out["fingerprint"] = hex64(fingerprint_summary(codebook));
  out["fingerprint_layers"] = n_known_hashes(codebook);
  out["bits_per_channel"] = codebook.bits_per_channel();
  out["centroid_bytes"] = codebook.centroid_bytes();
  out["window"] = codebook.window;
  out["sinks"] = codebook.sinks;
  out["weighting"] = origin.weighting;
  out["datasets"] = origin.datasets;
  out["n_tokens"] = origin.n_tokens;
  out["ctx_size"] = origin.ctx_size;
  out["seed"] = origin.seed;
  out["held_out"] = held_out_json(origin.held_out);
  out["tool_version"] = origin.tool_version;
  out["layers"] = nlohmann::ordered_json::array();
  for (const auto& layer : codebook.layers) {
    nlohmann::ordered_json entry;
    for (const KvKind kind : kBothKinds) {
      entry[kind == KvKind::kKey ? "k" : "v"] = side_json(layer.get(kind));
    }
    out["layers"].push_back(entry);
  }
  return out;
}

Outcome execute(const Flags& flags) {
  const auto codebook = read_codebook(flags.path);
  if (!codebook.ok()) {
    return codebook.status();
  }
  if (!flags.json) {
    print_people(*codebook);
    return {};
  }
  // Names in a file may be any bytes; JSON must be UTF-8.
  return write_text(
      "-",
      to_json(*codebook, flags.path).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
          "\n");
}

}  // namespace

Command add_inspect(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("inspect", "Show what a codebook file holds");
  const auto flags = std::make_shared<Flags>();
  add_file(parser, "file", flags->path, "The codebook (GGUF)")->required()->type_name("FILE");
  parser->add_flag("--json", flags->json, "As JSON, every layer apart");
  parser->footer(
      "Examples:\n"
      "  cqkv inspect model-cq.gguf\n"
      "  cqkv inspect --json model-cq.gguf | python3 -m json.tool");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
