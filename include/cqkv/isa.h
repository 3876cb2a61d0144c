// Which instruction set the kernels use: detected once, or forced by the
// environment variable CQKV_FORCE_ISA or by force_isa().
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cqkv/status.h"

namespace cqkv {

/// Names of the levels compiled in that this processor can run, best first;
/// "scalar" is always the last.
std::vector<std::string> supported_isas();

/// The level in use: the best supported one unless forced.
std::string active_isa();

/// Uses the level of that name from now on. kUnsupported, naming the supported
/// ones, if it is not compiled in or the processor lacks it; nothing changes then.
/// Call before work starts: not safe while kernels run on other threads.
Status force_isa(std::string_view name);

/// Whether CQKV_FORCE_ISA, if set, named a usable level. An unusable request is an
/// error that every program reports at start, not a silent fallback.
Status isa_status();

}  // namespace cqkv
