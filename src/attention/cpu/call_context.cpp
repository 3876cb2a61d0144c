// See call_context.h.
#include "attention/cpu/call_context.h"

#include "kernels/dispatch.h"

namespace cqkv {
namespace {

// Whose kernels multiply with codes of that side, if any do.
const kernels::KernelTable& code_kernel(const CacheSide& side) {
  const kernels::KernelTable& kernel = kernels::active();
  const kernels::KernelTable* chosen =
      side.codec == nullptr ? nullptr
                            : kernels::integer_kernels(kernel, side.codec->spec().code_bits());
  return chosen == nullptr ? kernel : *chosen;
}

}  // namespace

CallContext::CallContext(const AttentionCall& attention_call, const SequenceViews& call_views,
                         int n_threads)
    : call(attention_call),
      views(call_views),
      plan(call, views, n_threads),
      kernel(kernels::active()),
      key_kernel(code_kernel(call.k)),
      value_kernel(code_kernel(call.v)) {
}

}  // namespace cqkv
