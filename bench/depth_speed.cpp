// Tokens per second of a model deep in a context, on a coded cache and on llama.cpp's own beside
// it, in one process and in turns. `cqkv bench model` measures the same through llama-bench, which
// fills the cache to each depth anew: at 32K that takes an hour on a small machine. Here the first
// tokens are computed once, and then the cache is doubled: the sequence is saved, restored as
// another, shifted behind the first and joined to it. Speed depends on how many tokens are in the
// cache and not on which; what the model says at those depths means nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "bench_timing.h"
#include "eval/kv_device.h"
#include "llama/handles.h"
#include "llama/log.h"

namespace {

using cqkv::LlamaContext;
using cqkv::LlamaModel;
using cqkv::Status;
using cqkv::StatusCode;
using cqkv::app::Timings;
using cqkv::eval::KvDevice;

struct Options {
  std::string model;
  std::string codebook;
  std::string library;
  std::vector<std::string> types = {"f16"};
  int n_fill = 8192;
  int n_doublings = 2;
  int n_prompt = 512;
  int n_gen = 32;
  int n_repeats = 3;
  int n_threads = 2;
};

Status failed(const std::string& what) {
  const std::string reason = cqkv::take_llama_errors();
  return {StatusCode::kInternal, what + (reason.empty() ? "" : ": " + reason)};
}

// A cache under test: sequence 0 of a context holds `depth` tokens.
class Cache {
 public:
  std::string name;

  Status open(const Options& options, llama_model* model, ggml_type type, bool on_device) {
    llama_context_params params = llama_context_default_params();
    const int deepest = options.n_fill << options.n_doublings;
    params.n_ctx = static_cast<std::uint32_t>(deepest + std::max(options.n_prompt, options.n_gen));
    params.n_batch = kBatch;
    params.n_ubatch = kBatch;
    params.n_seq_max = 2;  // the second is the copy while the cache doubles
    params.kv_unified = true;
    params.n_threads = options.n_threads;
    params.n_threads_batch = options.n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.offload_kqv = on_device;
    params.type_k = type;
    params.type_v = type;
    params.no_perf = true;
    context_.reset(llama_init_from_model(model, params));
    n_vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model));
    return context_ == nullptr ? failed(name + ": no context") : Status();
  }

  // Decodes tokens at the end of the sequence, in batches of at most `step`, and adds the time.
  Status append(int n_tokens, int step, double& seconds) {
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0; done < n_tokens; done += step) {
      const int n = std::min(step, n_tokens - done);
      std::vector<llama_token> tokens(static_cast<std::size_t>(n));
      for (auto& token : tokens) {
        token = static_cast<llama_token>(random_() % static_cast<unsigned>(n_vocab_));
      }
      if (llama_decode(context_.get(), llama_batch_get_one(tokens.data(), n)) != 0) {
        return failed(name + ": llama_decode failed at depth " + std::to_string(depth_ + done));
      }
    }
    llama_synchronize(context_.get());
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    depth_ += n_tokens;
    return {};
  }

  Status cut(int depth) {
    depth_ = depth;
    return llama_memory_seq_rm(llama_get_memory(context_.get()), 0, depth, -1)
               ? Status()
               : failed(name + ": tokens cannot be removed");
  }

  Status twice() {
    llama_context* context = context_.get();
    std::vector<std::uint8_t> state(llama_state_seq_get_size(context, 0));
    if (llama_state_seq_get_data(context, state.data(), state.size(), 0) != state.size() ||
        llama_state_seq_set_data(context, state.data(), state.size(), 1) != state.size()) {
      return failed(name + ": the sequence cannot be copied");
    }
    llama_memory_t memory = llama_get_memory(context);
    llama_memory_seq_add(memory, 1, 0, -1, depth_);
    llama_memory_seq_cp(memory, 1, 0, depth_, 2 * depth_);
    llama_memory_seq_rm(memory, 1, -1, -1);
    depth_ *= 2;
    if (llama_memory_seq_pos_max(memory, 0) != depth_ - 1) {
      return failed(name + ": got " + std::to_string(llama_memory_seq_pos_max(memory, 0) + 1) +
                    " tokens, want " + std::to_string(depth_));
    }
    double seconds = 0;  // the first batch after it turns the keys that were shifted
    CQKV_RETURN_IF_ERROR(append(1, 1, seconds));
    return cut(depth_ - 1);
  }

  int depth() const { return depth_; }

  static constexpr int kBatch = 512;

 private:
  LlamaContext context_;
  std::minstd_rand random_;
  int n_vocab_ = 0;
  int depth_ = 0;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  Status run() {
    CQKV_RETURN_IF_ERROR(open());
    std::printf("%-8s %7s  %-16s  %s\n", "cache", "depth", "prompt t/s (best)",
                "generation t/s (best)");
    CQKV_RETURN_IF_ERROR(fill());
    CQKV_RETURN_IF_ERROR(time_depth());
    for (int doubling = 0; doubling < options_.n_doublings; doubling++) {
      for (auto& cache : caches_) {
        CQKV_RETURN_IF_ERROR(cache->twice());
      }
      CQKV_RETURN_IF_ERROR(time_depth());
    }
    return {};
  }

 private:
  Status open() {
    // Models first: one that is loaded once a device is there would use it.
    CQKV_RETURN_IF_ERROR(load({nullptr, nullptr}, 0, stock_model_));
    for (const std::string& type : options_.types) {
      auto& cache = caches_.emplace_back(std::make_unique<Cache>());
      cache->name = type;
      const ggml_type ggml = type == "f16"    ? GGML_TYPE_F16
                             : type == "q8_0" ? GGML_TYPE_Q8_0
                                              : GGML_TYPE_Q4_0;
      CQKV_RETURN_IF_ERROR(cache->open(options_, stock_model_.get(), ggml, false));
    }
    const auto device = KvDevice::load(options_.library);
    if (!device.ok()) {
      return device.status();
    }
    CQKV_RETURN_IF_ERROR(device->set_codebook(options_.codebook));
    CQKV_RETURN_IF_ERROR(load({device->device(), nullptr}, 999, coded_model_));
    auto& cache = caches_.emplace_back(std::make_unique<Cache>());
    cache->name = "coded";
    return cache->open(options_, coded_model_.get(), GGML_TYPE_F16, true);
  }

  Status load(std::vector<ggml_backend_dev_t> devices, int n_layers, LlamaModel& model) const {
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = n_layers;
    model.reset(llama_model_load_from_file(options_.model.c_str(), params));
    return model == nullptr ? failed(options_.model + ": cannot be loaded") : Status();
  }

  // The first tokens, in turns a batch each.
  Status fill() {
    std::vector<double> seconds(caches_.size(), 0.0);
    for (int done = 0; done < options_.n_fill; done += Cache::kBatch) {
      for (std::size_t i = 0; i < caches_.size(); i++) {
        const int n = std::min(Cache::kBatch, options_.n_fill - done);
        CQKV_RETURN_IF_ERROR(caches_[i]->append(n, n, seconds[i]));
      }
    }
    for (std::size_t i = 0; i < caches_.size(); i++) {
      std::printf("%-8s %7d  %6.1f (the first %d)\n", caches_[i]->name.c_str(), 0,
                  options_.n_fill / seconds[i], options_.n_fill);
    }
    std::fflush(stdout);
    return {};
  }

  Status time_depth() {
    std::vector<Timings> prompt(caches_.size());
    std::vector<Timings> gen(caches_.size());
    for (int repeat = 0; repeat < options_.n_repeats; repeat++) {
      for (std::size_t i = 0; i < caches_.size(); i++) {
        CQKV_RETURN_IF_ERROR(time_append(*caches_[i], options_.n_prompt, Cache::kBatch, prompt[i]));
        CQKV_RETURN_IF_ERROR(time_append(*caches_[i], options_.n_gen, 1, gen[i]));
      }
    }
    print_depth(prompt, gen);
    return {};
  }

  void print_depth(const std::vector<Timings>& prompt, const std::vector<Timings>& gen) const {
    for (std::size_t i = 0; i < caches_.size(); i++) {
      std::printf("%-8s %7d  %6.1f (%6.1f)    %7.2f (%7.2f)\n", caches_[i]->name.c_str(),
                  caches_[i]->depth(), options_.n_prompt / prompt[i].median(),
                  options_.n_prompt / prompt[i].minimum(), options_.n_gen / gen[i].median(),
                  options_.n_gen / gen[i].minimum());
    }
    std::fflush(stdout);
  }

  static Status time_append(Cache& cache, int n_tokens, int step, Timings& timings) {
    const int depth = cache.depth();
    CQKV_RETURN_IF_ERROR(cache.append(n_tokens, step, timings.seconds.emplace_back(0.0)));
    return cache.cut(depth);
  }

  const Options& options_;
  LlamaModel stock_model_;
  LlamaModel coded_model_;
  std::vector<std::unique_ptr<Cache>> caches_;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Speed of a model deep in a context");
  app.add_option("-m,--model", options.model, "The model (GGUF)")->required();
  app.add_option("--kv-codebook", options.codebook, "Codebook of the coded cache")->required();
  app.add_option("--device", options.library, "The KV device, libggml-cq.so")->required();
  app.add_option("--type", options.types, "llama.cpp's own cache types")
      ->delimiter(',')
      ->check(CLI::IsMember({"f16", "q8_0", "q4_0"}));
  const CLI::Range count(1, 1 << 20);
  app.add_option("--fill", options.n_fill, "Tokens that are computed")->check(count);
  app.add_option("--doublings", options.n_doublings, "How often they are doubled")
      ->check(CLI::Range(0, 10));
  app.add_option("--prompt", options.n_prompt, "Tokens of the prompt")->check(count);
  app.add_option("--gen", options.n_gen, "Tokens to generate")->check(count);
  app.add_option("--repeat", options.n_repeats, "Runs at each depth")->check(count);
  app.add_option("-t,--threads", options.n_threads, "Threads")->check(count);
  CLI11_PARSE(app, argc, argv);
  ::setenv("CQKV_SEQUENCES", "2", 1);  // exact rows for the copy too
  cqkv::catch_llama_log(false);
  llama_backend_init();
  const Status status = Bench(options).run();
  if (!status.ok()) {
    std::fprintf(stderr, "depth_speed: %s\n", status.message().c_str());
  }
  return status.ok() ? 0 : 1;
}
