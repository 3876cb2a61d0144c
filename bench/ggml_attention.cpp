// Times FLASH_ATTN_EXT of whatever ggml this is compiled against, on one problem of
// `cqkv bench attention`: one query of a sequence, over a cache laid out as llama.cpp's. For forks
// whose ggml cannot be in one process with ours; bench/compare_ik_llama.py builds and runs it.
//
//   ggml_attention TYPE HEAD_DIM GQA KV_HEADS TOKENS THREADS SECONDS
//
// Prints nanoseconds per token and query head, of the fastest run and the median one.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>
#if __has_include(<ggml-cpu.h>)
#include <ggml-cpu.h>
#endif

namespace {

struct Problem {
  ggml_type type = GGML_TYPE_F16;
  int head_dim = 128;
  int gqa = 4;
  int n_kv_heads = 2;
  int n_tokens = 4096;
};

ggml_type type_of(const std::string& name) {
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    if (name == ggml_type_name(type)) {
      return type;
    }
  }
  std::fprintf(stderr, "no type %s: want f16, bf16, q8_0 or q4_0\n", name.c_str());
  std::exit(2);
}

// ggml_quantize_chunk, which has one argument more in some forks.
template <typename Function, typename... Arguments>
void quantize(Function* function, Arguments... arguments) {
  if constexpr (std::is_invocable_v<Function*, Arguments...>) {
    function(arguments...);
  } else {
    function(arguments..., nullptr);
  }
}

void fill_random(ggml_tensor* tensor) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<std::size_t>(tensor->ne[0]));
  auto* to = static_cast<char*>(tensor->data);
  for (std::int64_t i = 0; i < ggml_nrows(tensor); i++, to += tensor->nb[1]) {
    for (float& value : row) {
      value = normal(generator);
    }
    if (tensor->type == GGML_TYPE_F32) {
      std::memcpy(to, row.data(), row.size() * sizeof(float));
    } else {
      quantize(ggml_quantize_chunk, tensor->type, row.data(), to, std::int64_t{0}, std::int64_t{1},
               tensor->ne[0], nullptr);
    }
  }
}

// The cache [n_channels, tokens] as heads.
ggml_tensor* heads_of(ggml_context* context, ggml_tensor* cache, const Problem& problem) {
  ggml_tensor* view =
      ggml_view_3d(context, cache, problem.head_dim, problem.n_kv_heads, problem.n_tokens,
                   ggml_row_size(cache->type, problem.head_dim), cache->nb[1], 0);
  return ggml_permute(context, view, 0, 2, 1, 3);
}

std::vector<double> time_runs(const Problem& problem, int n_threads, double seconds) {
  ggml_init_params params = {32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true};
  ggml_context* context = ggml_init(params);
  const std::int64_t n_channels = std::int64_t{problem.head_dim} * problem.n_kv_heads;
  ggml_tensor* q = ggml_new_tensor_3d(context, GGML_TYPE_F32, problem.head_dim,
                                      problem.gqa * problem.n_kv_heads, 1);
  ggml_tensor* k = ggml_new_tensor_2d(context, problem.type, n_channels, problem.n_tokens);
  ggml_tensor* v = ggml_new_tensor_2d(context, problem.type, n_channels, problem.n_tokens);
#ifdef GGML_KQ_MASK_PAD
  constexpr int kMaskRows = GGML_PAD(1, GGML_KQ_MASK_PAD);
#else
  constexpr int kMaskRows = 1;
#endif
  ggml_tensor* mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, problem.n_tokens, kMaskRows);
  ggml_tensor* out =
      ggml_flash_attn_ext(context, ggml_permute(context, q, 0, 2, 1, 3),
                          heads_of(context, k, problem), heads_of(context, v, problem), mask,
                          1.0F / std::sqrt(static_cast<float>(problem.head_dim)), 0.0F, 0.0F);
  ggml_cgraph* graph = ggml_new_graph(context);
  ggml_build_forward_expand(graph, out);
  ggml_backend_t backend = ggml_backend_cpu_init();
  ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
  ggml_backend_cpu_set_n_threads(backend, n_threads);
  for (ggml_tensor* tensor : {q, k, v}) {
    fill_random(tensor);
  }
  std::memset(mask->data, 0, ggml_nbytes(mask));
  ggml_backend_graph_compute(backend, graph);
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  std::vector<double> times;
  do {
    const auto start = Clock::now();
    ggml_backend_graph_compute(backend, graph);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  ggml_backend_buffer_free(buffer);
  ggml_backend_free(backend);
  ggml_free(context);
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8) {
    std::fprintf(stderr, "usage: %s TYPE HEAD_DIM GQA KV_HEADS TOKENS THREADS SECONDS\n", argv[0]);
    return 2;
  }
  Problem problem;
  problem.type = type_of(argv[1]);
  problem.head_dim = std::atoi(argv[2]);
  problem.gqa = std::atoi(argv[3]);
  problem.n_kv_heads = std::atoi(argv[4]);
  problem.n_tokens = std::atoi(argv[5]);
  std::vector<double> times = time_runs(problem, std::atoi(argv[6]), std::atof(argv[7]));
  std::sort(times.begin(), times.end());
  const double unit = 1e9 / (double{1} * problem.n_tokens * problem.gqa * problem.n_kv_heads);
  std::printf("%.4f %.4f\n", times.front() * unit, times[times.size() / 2] * unit);
  return 0;
}
