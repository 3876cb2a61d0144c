#!/usr/bin/env bash
# Builds the fuzz targets with clang and libFuzzer and runs one of them.
#
#   scripts/fuzz.sh record|codebook_file|cache [RUNS]     default: 100000 runs
#
# New inputs that reach new code are kept in build-fuzz/corpus, findings in build-fuzz.
# CQKV_FUZZ_PLAIN=1 leaves the address and undefined-behaviour sanitizers out (build-fuzz-plain):
# the cache target, which finds by comparing with a model, then runs three times as fast.
# Needs Debian's clang-14, libclang-rt-14-dev and libomp-14-dev.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?usage: scripts/fuzz.sh record|codebook_file|cache [RUNS]}
runs=${2:-100000}
build="build-fuzz"
options=()
if [[ ${CQKV_FUZZ_PLAIN:-0} != 0 ]]; then
  build="build-fuzz-plain"
  options=(-DCMAKE_CXX_FLAGS="-fsanitize=fuzzer-no-link -fno-omit-frame-pointer")
fi
# Of the cache's operations more make a run slow, not deep.
max_len=4096
[[ $name != cache ]] || max_len=48

CQKV_LLAMA_DIR=$(scripts/llama_cpp.sh)
export CQKV_LLAMA_DIR
cmake --preset fuzz -B "$build" "${options[@]}" >/dev/null
cmake --build "$build" --parallel "$(nproc)" --target "fuzz_$name"
mkdir -p "$build/corpus/$name"
# Threads of OpenMP would have nothing to share in caches as small as these.
ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} OMP_NUM_THREADS=1 "$build/bin/fuzz_$name" \
  -runs="$runs" -artifact_prefix="$build/" -max_len="$max_len" -detect_leaks=0 \
  -print_final_stats=1 "$build/corpus/$name" "tests/fuzz/corpus/$name"
