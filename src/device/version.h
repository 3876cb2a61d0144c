// The version of ggml that the device was compiled against: its vtables change
// between releases without the interface version changing, so any other is refused.
#pragma once

#include "cqkv/status.h"

namespace cqkv::device {

/// kMismatch, naming both, unless `version` is the one compiled against.
Status check_ggml_version(const char* version);

}  // namespace cqkv::device
