#!/usr/bin/env bash
# Configures and builds one CMake preset (release, dev, asan): llama.cpp first, once,
# outside the tree; then cqkv, or one target of it. The release build also links llama.cpp's
# programs into build/bin, beside cqkv and the device.
#
#   scripts/build.sh PRESET [TARGET]      default: release, everything
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
target=${2:-all}
jobs=${CQKV_JOBS:-$(nproc)}

CQKV_LLAMA_DIR=$(scripts/llama_cpp.sh)
CQKV_TEST_MODEL=$(scripts/models.sh smollm2)
export CQKV_LLAMA_DIR CQKV_TEST_MODEL
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" --parallel "$jobs" --target "$target"

if [[ $preset == release ]]; then
  for program in "$CQKV_LLAMA_DIR"/build/bin/llama-*; do
    ln -sf "$program" build/bin/
  done
fi
