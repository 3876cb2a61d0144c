// See attention.h: the check of a call, and its working memory. How it is cut into tasks is plan/,
// what they do cpu/.
#include "attention/attention.h"

#include <cmath>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "attention/cpu/attention_operator.h"
#include "isa/select.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

Status check_side(const CacheSide& side, std::string_view name, int n_kv_heads, int head_dim,
                  std::size_t n_cells) {
  const bool stores_nothing = side.codec != nullptr && side.codec->layout().n_codes() == 0;
  if (n_cells > 0 && side.data == nullptr && !stores_nothing) {
    return invalid_argument("attention: no " + std::string(name));
  }
  const TensorCodebook* codebook = side.codec != nullptr ? &side.codec->codebook() : nullptr;
  if (codebook != nullptr &&
      (codebook->n_kv_heads() != n_kv_heads || codebook->head_dim() != head_dim)) {
    return invalid_argument("attention: the codebook of the " + std::string(name) + " is for " +
                            std::to_string(codebook->n_kv_heads()) + " KV heads of " +
                            std::to_string(codebook->head_dim()) + " channels, the call has " +
                            std::to_string(n_kv_heads) + " of " + std::to_string(head_dim));
  }
  // Keys are rotated by position channel by channel; values are turned back as sums.
  const bool is_key = name == "keys";
  if (codebook != nullptr &&
      (is_key ? codebook->basis().has_rotation() : codebook->basis().has_order())) {
    return invalid_argument("attention: the basis of the " + std::string(name) +
                            (is_key ? " has a rotation, want an order of channels"
                                    : " has an order of channels, want a rotation"));
  }
  if (codebook != nullptr && side.codec->tables() != nullptr &&
      side.codec->tables()->n_channels() != codebook->n_channels()) {
    return invalid_argument("attention: the byte tables of the " + std::string(name) +
                            " are another codebook's");
  }
  if (codebook != nullptr && !side.codec->fits(kernels::active())) {
    return invalid_argument("attention: the byte tables of the " + std::string(name) +
                            " are for other kernels than those of " +
                            std::string(isa::level_name(kernels::active().level)) +
                            "; make a codec for these");
  }
  return {};
}

std::string describe(const RopeParams* rope) {
  return rope == nullptr
             ? "none"
             : std::to_string(rope->n_dims) + " channels, base " + std::to_string(rope->freq_base) +
                   ", mode " + std::to_string(static_cast<int>(rope->mode));
}

Status check_exact(const AttentionCall& call) {
  const ExactRows& exact = *call.exact;
  if (exact.rows == nullptr || exact.sinks == nullptr || exact.query_positions == nullptr ||
      call.positions == nullptr) {
    return invalid_argument("attention: exact rows without rows, sinks or positions");
  }
  const auto incomplete = [](const CacheSide& side, const ExactRows::Side& rows) {
    return side.codec != nullptr && (rows.pool == nullptr || rows.batch == nullptr);
  };
  if (incomplete(call.k, exact.k) || incomplete(call.v, exact.v)) {
    return invalid_argument("attention: a coded side without exact rows");
  }
  return {};
}

Status check_key_sums(const AttentionCall& call) {
  const KeySums& key_sums = *call.key_sums;
  if (call.k.codec == nullptr || call.v.codec == nullptr) {
    return invalid_argument("attention: sums over keys need codes of keys and values");
  }
  if (key_sums.n_kv_heads() != call.n_kv_heads || key_sums.head_dim_v() != call.head_dim_v ||
      key_sums.n_key_codes() != call.k.codec->codebook().n_codes() ||
      !call.k.codec->spec().uniform() ||
      key_sums.centroids().spec().spec(0) != call.k.codec->spec().spec(0)) {
    const auto keys = [](int n_codes, const TensorSpec& spec) {
      return " channels and keys of " + std::to_string(n_codes) + " codes of " + spec.name();
    };
    return invalid_argument(
        "attention: the sums over keys are for " + std::to_string(key_sums.n_kv_heads()) +
        " KV heads of " + std::to_string(key_sums.head_dim_v()) +
        keys(key_sums.n_key_codes(), key_sums.centroids().spec()) + ", the call has " +
        std::to_string(call.n_kv_heads) + " of " + std::to_string(call.head_dim_v) +
        keys(call.k.codec->codebook().n_codes(), call.k.codec->spec()));
  }
  return {};
}

Status check(const AttentionCall& call) {
  if (call.n_kv_heads <= 0 || call.n_heads <= 0 || call.n_heads % call.n_kv_heads != 0) {
    return invalid_argument("attention: got " + std::to_string(call.n_heads) + " heads and " +
                            std::to_string(call.n_kv_heads) +
                            " KV heads, want a multiple of KV heads");
  }
  if (call.head_dim_k <= 0 || call.head_dim_v <= 0 || call.n_queries < 0) {
    return invalid_argument("attention: got head sizes " + std::to_string(call.head_dim_k) +
                            " and " + std::to_string(call.head_dim_v) + " and " +
                            std::to_string(call.n_queries) + " queries");
  }
  if (!(call.softcap >= 0.0F && std::isfinite(call.softcap))) {
    return invalid_argument("attention: got a softcap of " + std::to_string(call.softcap) +
                            ", want 0 or more");
  }
  if (call.n_cells > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    return invalid_argument("attention: got " + std::to_string(call.n_cells) +
                            " cells, want fewer than 2^31");
  }
  if (call.n_queries > 0 && (call.queries == nullptr || call.out == nullptr)) {
    return invalid_argument("attention: no queries or no output");
  }
  CQKV_RETURN_IF_ERROR(check_side(call.k, "keys", call.n_kv_heads, call.head_dim_k, call.n_cells));
  CQKV_RETURN_IF_ERROR(
      check_side(call.v, "values", call.n_kv_heads, call.head_dim_v, call.n_cells));
  if (call.exact != nullptr) {
    CQKV_RETURN_IF_ERROR(check_exact(call));
  }
  if (call.key_sums != nullptr) {
    CQKV_RETURN_IF_ERROR(check_key_sums(call));
  }
  if (call.k.codec != nullptr && call.k.codec->tables() != nullptr) {
    const RopeParams* rope = call.rope != nullptr ? &call.rope->params() : nullptr;
    const KeyPairs& pairs = call.k.codec->tables()->pairs();
    if (!pairs.fit(rope)) {
      return invalid_argument("attention: the byte tables of the keys are for another rotation: " +
                              describe(pairs.rope.has_value() ? &*pairs.rope : nullptr) +
                              ", the call has " + describe(rope) +
                              " (or another scaling or other frequency factors)");
    }
  }
  if (call.rope != nullptr && call.k.codec != nullptr) {
    if (call.positions == nullptr && call.n_cells > 0) {
      return invalid_argument("attention: keys are to be rotated, but there are no positions");
    }
    return call.rope->params().check(call.head_dim_k);
  }
  return {};
}

}  // namespace

struct AttentionWorkspace::Impl {
  SequenceViews views;
  AlignedBuffer shared;
  AlignedBuffer threads;
};

AttentionWorkspace::AttentionWorkspace() : impl_(new (std::nothrow) Impl) {
}

AttentionWorkspace::~AttentionWorkspace() {
  delete impl_;
}

AttentionWorkspace::AttentionWorkspace(AttentionWorkspace&& other) noexcept
    : impl_(std::exchange(other.impl_, nullptr)) {
}

AttentionWorkspace& AttentionWorkspace::operator=(AttentionWorkspace&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

Status AttentionWorkspace::run(const AttentionCall& call, ParallelFor& parallel) {
  impl_->views.build(call);
  const CallContext context(call, impl_->views, parallel.n_threads());
  const AttentionOperator::Sizes sizes = AttentionOperator::sizes(context);
  const std::size_t threads = sizes.thread * parallel.n_threads();
  if (!impl_->shared.reserve(sizes.shared) || !impl_->threads.reserve(threads)) {
    return {StatusCode::kResourceExhausted, "attention: no memory for " +
                                                std::to_string(sizes.shared + threads) +
                                                " bytes of working memory"};
  }
  AttentionOperator(context, sizes, impl_->shared.data(), impl_->threads.data()).run(parallel);
  return {};
}

Status attend(const AttentionCall& call, ParallelFor& parallel, AttentionWorkspace& workspace) {
  try {
    CQKV_RETURN_IF_ERROR(check(call));
    if (call.n_queries == 0) {
      return {};
    }
    if (workspace.impl_ == nullptr) {
      workspace.impl_ = new AttentionWorkspace::Impl;
    }
    return workspace.run(call, parallel);
  } catch (const std::bad_alloc&) {
    return {StatusCode::kResourceExhausted,
            "attention: no memory for the blocks of " + std::to_string(call.n_cells) + " cells"};
  }
}

}  // namespace cqkv
