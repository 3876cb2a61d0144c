#!/usr/bin/env bash
# Builds the fuzz targets with clang and libFuzzer and runs one of them.
#
#   scripts/fuzz.sh record|codebook_file|cache [RUNS]     default: 100000 runs
#
# New inputs that reach new code are kept in build-fuzz/corpus, findings in build-fuzz.
# Needs Debian's clang-14, libclang-rt-14-dev and libomp-14-dev.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?usage: scripts/fuzz.sh record|codebook_file|cache [RUNS]}
runs=${2:-100000}

CQKV_LLAMA_DIR=$(scripts/llama_cpp.sh)
export CQKV_LLAMA_DIR
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --parallel "$(nproc)"
mkdir -p "build-fuzz/corpus/$name"
ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} "build-fuzz/bin/fuzz_$name" -runs="$runs" \
  -artifact_prefix=build-fuzz/ -max_len=4096 -print_final_stats=1 \
  "build-fuzz/corpus/$name" "tests/fuzz/corpus/$name"
