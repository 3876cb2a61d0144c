// What all tasks of an attention call read and none writes: the call, what its queries look at,
// how it is cut into tasks, and the kernels that compute it. Memory is not here.
#pragma once

#include "attention/attention.h"
#include "attention/plan/plan.h"
#include "attention/plan/sequence_views.h"
#include "kernels/kernel_table.h"

namespace cqkv {

struct CallContext {
  // `call_views` are the call's. May throw std::bad_alloc.
  CallContext(const AttentionCall& attention_call, const SequenceViews& call_views, int n_threads);

  // Whether the values of a head are anything but their mean; exact ones always are.
  bool has_value_codes(int kv_head) const {
    return call.v.codec == nullptr || call.v.codec->spec().coded(kv_head);
  }

  const AttentionCall& call;
  const SequenceViews& views;
  const Plan plan;
  const kernels::KernelTable& kernel;
  const kernels::KernelTable& key_kernel;  // for the codes of keys, in scores and in sums
  const kernels::KernelTable& value_kernel;
};

}  // namespace cqkv
