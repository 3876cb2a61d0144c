// The loss of a model by libllama, which the gradient pass is compared with.
#pragma once

#include <string>
#include <vector>

#include "model_pass/kv_rows.h"

namespace cqkv::testing {

/// The mean cross entropy in nats a predicted token, without flash attention and with an
/// f32 cache.
double llama_loss(const std::string& path, std::vector<Token> tokens);

}  // namespace cqkv::testing
