// SET_ROWS into a coded cache: rows are rotated back (keys), encoded and stored, with
// their exact rows where there is a window.
#pragma once

#include <ggml.h>

#include "cqkv/status.h"

#include "core/parallel.h"
#include "device/graph_ops.h"

namespace cqkv::device {

Status check_store(const ggml_tensor* node);

Status run_store(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch);

}  // namespace cqkv::device
