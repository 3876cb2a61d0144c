// The ggml backend: one device, CQ0, of type GPU so that llama.cpp puts a layer's
// cache into its buffers, that computes nothing but the operations on caches.
// Everything else it refuses, so weights and all other nodes stay on the CPU.
// What it computes is in graph_ops.h, its memory in kv_buffer.h.
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include <ggml-backend-impl.h>
#include <ggml-impl.h>

#include "core/exceptions.h"
#include "device/context_report.h"
#include "device/graph_ops.h"
#include "device/host_memory.h"
#include "device/kv_buffer.h"
#include "device/omp_parallel.h"
#include "device/refusal.h"
#include "device/version.h"
#include "graph/sources.h"

namespace cqkv::device {
namespace {

ggml_backend_device the_device;
ggml_backend_reg the_registry;

// ---- Backend: a stream of graphs -------------------------------------------

struct Backend {
  OmpParallelFor parallel;
  GraphScratch scratch;
  ggml_backend_t cpu = nullptr;  // computes on plain caches
  ggml_backend_set_n_threads_t set_cpu_threads = nullptr;
};

Backend& context_of(ggml_backend_t backend) {
  return *static_cast<Backend*>(backend->context);
}

const char* backend_name(ggml_backend_t /*backend*/) {
  return "CQ0";
}

void backend_free(ggml_backend_t backend) {
  if (context_of(backend).cpu != nullptr) {
    ggml_backend_free(context_of(backend).cpu);
  }
  delete &context_of(backend);
  delete backend;
}

// The end of the run of nodes from `first` that the CPU backend can compute for us.
int plain_run_end(ggml_cgraph* graph, int first) {
  int end = first;
  while (end < graph->n_nodes && classify(graph->nodes[end]) != NodeKind::kCoded) {
    end++;
  }
  return end;
}

ggml_status run_plain(Backend& backend, ggml_cgraph* graph, int first, int end) {
  bool any = false;
  for (int i = first; i < end; i++) {
    watch_plain_node(graph->nodes[i]);
    any = any || !is_noop(graph->nodes[i]->op);
  }
  if (!any) {
    return GGML_STATUS_SUCCESS;
  }
  ggml_cgraph part = ggml_graph_view(graph, first, end);
  return ggml_backend_graph_compute(backend.cpu, &part);
}

ggml_status graph_compute(ggml_backend_t self, ggml_cgraph* graph) {
  Backend& backend = context_of(self);
  take_refusal();  // a refusal whose allocation never came must not hit a later one
  for (int i = 0; i < graph->n_nodes;) {
    if (classify(graph->nodes[i]) != NodeKind::kCoded) {
      const int end = plain_run_end(graph, i);
      const ggml_status status = run_plain(backend, graph, i, end);
      if (status != GGML_STATUS_SUCCESS) {
        return status;
      }
      i = end;
      continue;
    }
    const Status status = run_coded(graph->nodes[i], backend.parallel, backend.scratch);
    if (!status.ok()) {
      report_error(status.message());
      return GGML_STATUS_FAILED;
    }
    i++;
  }
  return GGML_STATUS_SUCCESS;
}

void set_n_threads(ggml_backend_t self, int n_threads) {
  Backend& backend = context_of(self);
  backend.parallel.set_n_threads(n_threads);
  if (backend.set_cpu_threads != nullptr) {
    backend.set_cpu_threads(backend.cpu, n_threads);
  }
}

ggml_guid_t backend_guid() {
  static ggml_guid guid = {0x63, 0x71, 0x6b, 0x76, 0x2d, 0x43, 0x51, 0x30,
                           0x9e, 0x1f, 0x44, 0x7a, 0xb2, 0x05, 0xd8, 0x61};
  return &guid;
}

// ---- Device ----------------------------------------------------------------

const char* device_name(ggml_backend_dev_t /*device*/) {
  return "CQ0";
}

const char* device_description(ggml_backend_dev_t /*device*/) {
  return "cqkv: coupled-quantized KV cache";
}

void device_memory(ggml_backend_dev_t /*device*/, std::size_t* free, std::size_t* total) {
  const HostMemory memory = host_memory();
  *free = memory.available;
  *total = memory.total;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t /*device*/) {
  return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  std::memset(props, 0, sizeof(*props));
  props->name = device_name(device);
  props->description = device_description(device);
  props->type = device_type(device);
  device_memory(device, &props->memory_free, &props->memory_total);
  // Without it the host would read the CPU's weights instead of mapping them.
  props->caps.mmap_support = true;
}

ggml_backend_t device_init_backend(ggml_backend_dev_t device, const char* /*params*/) {
  ggml_backend_dev_t cpu_device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  ggml_backend_t cpu = cpu_device == nullptr ? nullptr : ggml_backend_dev_init(cpu_device, nullptr);
  if (cpu == nullptr) {
    report_error("the host has no CPU backend");
    return nullptr;
  }
  auto* context = new (std::nothrow) Backend();
  auto* backend = new (std::nothrow) ggml_backend{};
  if (context == nullptr || backend == nullptr) {
    delete context;
    delete backend;
    ggml_backend_free(cpu);
    report_error("out of memory for a backend");
    return nullptr;
  }
  context->cpu = cpu;
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): ggml hands functions out as void*
  context->set_cpu_threads =
      reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(cpu_device), "ggml_backend_set_n_threads"));
  backend->guid = backend_guid();
  backend->iface.get_name = backend_name;
  backend->iface.free = backend_free;
  backend->iface.graph_compute = graph_compute;
  backend->device = device;
  backend->context = context;
  begin_context();
  return backend;
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) {
  static ggml_backend_buffer_type_t type = kv_buffer_type(device);
  return type;
}

bool supports(const ggml_tensor* node) {
  switch (classify(node)) {
    case NodeKind::kForeign:
      return false;
    case NodeKind::kPlain:
      return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU),
                                          node);
    case NodeKind::kNoop:
    case NodeKind::kCoded: {
      const Status status =
          without_exceptions("planning a graph", [&] { return check_coded(node); });
      if (!status.ok()) {
        refuse(status);
      }
      return true;  // "no" would end in an abort; see refusal.h
    }
  }
  return false;
}

bool device_supports_op(ggml_backend_dev_t /*device*/, const ggml_tensor* node) {
  const bool answer = supports(node);
  watch_planned_node(node);
  return answer;
}

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
  return type == device_buffer_type(device) || ggml_backend_buft_is_host(type);
}

// ---- Registry --------------------------------------------------------------

const char* registry_name(ggml_backend_reg_t /*registry*/) {
  return "CQ";
}

std::size_t registry_count(ggml_backend_reg_t /*registry*/) {
  return 1;
}

ggml_backend_dev_t registry_device(ggml_backend_reg_t /*registry*/, std::size_t /*index*/) {
  return &the_device;
}

// "" is a library without codebooks: every cache stays plain.
const char* set_codebook(const char* paths) {
  static thread_local std::string error;
  clear_last_error();
  auto library = CodebookLibrary::load(paths);
  if (!library.ok()) {
    error = library.status().message();
    return error.c_str();
  }
  set_current_library(std::move(*library));
  return nullptr;
}

// Negative numbers: the codebook's own window, the default spare.
void set_window(int window, int sinks, int spare, int n_sequences) {
  const auto given = [](int number) {
    return number < 0 ? std::nullopt : std::optional<int>(number);
  };
  WindowChoice choice;
  choice.window = {given(window), given(sinks), given(spare)};
  choice.n_sequences = n_sequences;
  set_window_choice(choice);
}

void use_byte_tables(int wanted) {
  set_byte_tables(wanted != 0);
}

const char* last_error_text() {
  static thread_local std::string text;
  text = last_error();
  return text.c_str();
}

// What was said of the newest context of this thread, once: 0 nothing, 1 all of its cache is coded,
// 2 a part, 3 nothing of it. The words are valid until the next call.
int report(const char** line) {
  static thread_local Report said;
  said = take_report();
  *line = said.line.c_str();
  return static_cast<int>(said.coded);
}

void* registry_proc(ggml_backend_reg_t /*registry*/, const char* name) {
  const std::string_view wanted(name);
  // NOLINTBEGIN(cppcoreguidelines-pro-type-reinterpret-cast): ggml hands functions out as void*
  if (wanted == "ggml_backend_set_n_threads") {
    return reinterpret_cast<void*>(set_n_threads);
  }
  if (wanted == "cqkv_set_codebook") {
    return reinterpret_cast<void*>(set_codebook);
  }
  if (wanted == "cqkv_set_window") {
    return reinterpret_cast<void*>(set_window);
  }
  if (wanted == "cqkv_use_byte_tables") {
    return reinterpret_cast<void*>(use_byte_tables);
  }
  if (wanted == "cqkv_last_error") {
    return reinterpret_cast<void*>(last_error_text);
  }
  if (wanted == "cqkv_report") {
    return reinterpret_cast<void*>(report);
  }
  if (wanted == "cqkv_cache_bytes") {
    return reinterpret_cast<void*>(newest_cache_bytes);
  }
  // NOLINTEND(cppcoreguidelines-pro-type-reinterpret-cast)
  return nullptr;
}

}  // namespace
}  // namespace cqkv::device

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);

// Called by ggml_backend_load. NULL makes the host go on without the device: `-dev CQ0` then fails,
// and the host may stop before its log is written. So only what makes the device unusable is
// checked here, and said besides on standard error; all else when a cache is allocated.
ggml_backend_reg_t ggml_backend_init(void) {
  using namespace cqkv::device;  // NOLINT(google-build-using-namespace): the one entry point
  const cqkv::Status status = check_ggml_version(ggml_version());
  if (!status.ok()) {
    report_error(status.message());
    std::fprintf(stderr, "cqkv: %s\n", status.message().c_str());
    return nullptr;
  }
  the_device.iface = {
      .get_name = device_name,
      .get_description = device_description,
      .get_memory = device_memory,
      .get_type = device_type,
      .get_props = device_props,
      .init_backend = device_init_backend,
      .get_buffer_type = device_buffer_type,
      .get_host_buffer_type = nullptr,
      .buffer_from_host_ptr = nullptr,
      .supports_op = device_supports_op,
      .supports_buft = device_supports_buft,
      .offload_op = nullptr,
      .event_new = nullptr,
      .event_free = nullptr,
      .event_synchronize = nullptr,
  };
  the_device.reg = &the_registry;
  the_registry.api_version = GGML_BACKEND_API_VERSION;
  the_registry.iface = {
      .get_name = registry_name,
      .get_device_count = registry_count,
      .get_device = registry_device,
      .get_proc_address = registry_proc,
  };
  return &the_registry;
}
