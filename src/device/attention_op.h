// FLASH_ATTN_EXT over a coded cache: the node becomes one call of attend for each stream,
// with the exact rows of the window.
#pragma once

#include <ggml.h>

#include "cqkv/status.h"

#include "core/parallel.h"
#include "device/graph_ops.h"

namespace cqkv::device {

Status check_attention(const ggml_tensor* node);

/// A view, met while a graph is planned: kUnsupported if a layer without a cache of its own
/// reads a coded one.
Status check_view(const ggml_tensor* view);

Status run_attention(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch);

}  // namespace cqkv::device
