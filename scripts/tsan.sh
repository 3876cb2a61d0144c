#!/usr/bin/env bash
# Threads of the library under the thread sanitizer: the pool, the cache and attention with several
# threads, learning. Needs no llama.cpp.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(core_test capi_test exact_window_test learn_test)
CQKV_LLAMA_DIR='' CQKV_TEST_MODEL='' cmake --preset tsan >/dev/null
cmake --build --preset tsan --parallel "${CQKV_JOBS:-$(nproc)}" --target "${targets[@]}"
for target in "${targets[@]}"; do
  TSAN_OPTIONS=halt_on_error=1 "build-tsan/bin/$target" --gtest_brief=1
done
