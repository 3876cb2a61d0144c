#!/usr/bin/env bash
# The whole test suite: the release build with its end-to-end tests, and our own
# code's tests once more under the address and undefined-behaviour sanitizers, and what depends on
# the instruction set under each level.
# Ends with ctest's summary of the release run. Long model runs are left to
# `make slow`.
set -euo pipefail
cd "$(dirname "$0")/.."

export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/lsan.supp:print_suppressions=0}

jobs=${CQKV_JOBS:-$(nproc)}
scripts/build.sh release
scripts/build.sh asan
ctest --preset asan --parallel "$jobs"
scripts/levels.sh
ctest --preset release --parallel "$jobs"
