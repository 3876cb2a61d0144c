// Names and limits shared by the reader and the writer of codebook files; the page
// for people is docs/codebook_format.md.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "cqkv/types.h"

namespace cqkv::format {

inline constexpr const char* kType = "kv_codebook";
inline constexpr const char* kMethod = "cq";
inline constexpr const char* kKeyRope = "pre";

inline constexpr const char* kGeneralType = "general.type";
inline constexpr const char* kGeneralArchitecture = "general.architecture";
inline constexpr const char* kGeneralName = "general.name";
inline constexpr const char* kGeneralLicense = "general.license";
inline constexpr const char* kSourceUrl = "general.source.url";
inline constexpr const char* kBaseModelCount = "general.base_model.count";
inline constexpr const char* kBaseModelName = "general.base_model.0.name";

inline constexpr const char* kPrefix = "kv_codebook.";
inline constexpr const char* kVersion = "kv_codebook.version";
inline constexpr const char* kMethodKey = "kv_codebook.method";
inline constexpr const char* kIdentity = "kv_codebook.identity";
inline constexpr const char* kModelFingerprint = "kv_codebook.model_fingerprint";
inline constexpr const char* kModelName = "kv_codebook.model_name";
inline constexpr const char* kKeyRopeKey = "kv_codebook.key_rope";
inline constexpr const char* kWindow = "kv_codebook.window";
inline constexpr const char* kSinks = "kv_codebook.sinks";
inline constexpr const char* kDatasets = "kv_codebook.datasets";
inline constexpr const char* kNTokens = "kv_codebook.n_tokens";
inline constexpr const char* kCtxSize = "kv_codebook.ctx_size";
inline constexpr const char* kHeldOutTokens = "kv_codebook.held_out.n_tokens";
inline constexpr const char* kHeldOutKeyLoss = "kv_codebook.held_out.k_loss";
inline constexpr const char* kHeldOutValueLoss = "kv_codebook.held_out.v_loss";
inline constexpr const char* kWeighting = "kv_codebook.weighting";
inline constexpr const char* kSeed = "kv_codebook.seed";
inline constexpr const char* kToolVersion = "kv_codebook.tool_version";
inline constexpr const char* kKeyGroupDim = "kv_codebook.k.group_dim";
inline constexpr const char* kKeyCodeBits = "kv_codebook.k.code_bits";
inline constexpr const char* kValueGroupDim = "kv_codebook.v.group_dim";
inline constexpr const char* kValueCodeBits = "kv_codebook.v.code_bits";

/// Limits that keep every later product inside an int.
inline constexpr std::size_t kMaxLayers = 4096;
inline constexpr int kMaxKvHeads = 4096;
inline constexpr int kMaxHeadDim = 8192;

inline const char* group_dim_key(KvKind kind) {
  return kind == KvKind::kKey ? kKeyGroupDim : kValueGroupDim;
}

inline const char* code_bits_key(KvKind kind) {
  return kind == KvKind::kKey ? kKeyCodeBits : kValueCodeBits;
}

// Since version 1.2.
inline constexpr const char* kKeyHeadGroupDims = "kv_codebook.k.head_group_dims";
inline constexpr const char* kValueHeadGroupDims = "kv_codebook.v.head_group_dims";

inline const char* head_group_dims_key(KvKind kind) {
  return kind == KvKind::kKey ? kKeyHeadGroupDims : kValueHeadGroupDims;
}

inline std::string tensor_name(std::size_t layer, KvKind kind) {
  return "blk." + std::to_string(layer) +
         (kind == KvKind::kKey ? ".attn_k.codebook" : ".attn_v.codebook");
}

// Since version 1.3: the parts of a basis.
inline constexpr const char* kOrder = "order";
inline constexpr const char* kRotation = "rotation";
inline constexpr const char* kMetric = "metric";

// Since version 1.4: of the heads without codes.
inline constexpr const char* kMean = "mean";

// Since version 1.5: of centroids that are bytes.
inline constexpr const char* kScale = "scale";

inline std::string part_name(std::size_t layer, KvKind kind, const char* part) {
  return "blk." + std::to_string(layer) + (kind == KvKind::kKey ? ".attn_k." : ".attn_v.") + part;
}

}  // namespace cqkv::format
