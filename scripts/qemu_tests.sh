#!/usr/bin/env bash
# Runs the tests of the kernels and of attention on processors that we do not have:
#
#   scripts/qemu_tests.sh [nehalem|aarch64]     default: both
#
# nehalem: those of the release build (run `make build` first), on an x86 without AVX.
# aarch64: the core library cross-built in build-aarch64, on a core without dot products of
# bytes, then what uses them on one that has them. About a quarter of an hour.
#
# Needs Debian's qemu-user and, for aarch64, g++-12-aarch64-linux-gnu and googletest.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(isa_test dispatch_test kernels_test attention_test)
export CQKV_FORCE_ISA=

need() {  # PROGRAM PACKAGE
  command -v "$1" >/dev/null || { echo "install $1 (Debian: $2)" >&2; exit 1; }
}

# Runs the tests of a folder on a processor that lacks some levels: qemu and its options are
# the other arguments.
run_tests() {  # FOLDER LEVELS QEMU...
  local bin=$1 lacks=$2 name
  shift 2
  # That no instruction is missing shows only if the levels that need it are not chosen.
  if "$@" "$bin/kernels_test" --gtest_list_tests | grep "$lacks"; then
    echo "$*: got levels with $lacks, want none of them" >&2
    exit 1
  fi
  for name in "${tests[@]}"; do
    "$@" "$bin/$name" --gtest_brief=1
  done
}

# Runs the tests of one level, which the processor must have.
run_level() {  # FOLDER LEVEL QEMU...
  local bin=$1 level=$2 name
  shift 2
  for name in kernels_test attention_test; do
    "$@" "$bin/$name" --gtest_list_tests --gtest_filter="*/$level*" | grep -q "$level" || {
      echo "$*: $name: got no tests of level $level, want some" >&2
      exit 1
    }
    "$@" "$bin/$name" --gtest_brief=1 --gtest_filter="*/$level*"
  done
}

nehalem() {
  need qemu-x86_64 qemu-user
  [[ -x build/bin/attention_test ]] || { echo "run make build first" >&2; exit 1; }
  run_tests build/bin avx qemu-x86_64 -cpu Nehalem
}

aarch64() {
  local triplet=aarch64-linux-gnu build=$PWD/build-aarch64
  local jobs=${CQKV_JOBS:-$(nproc)}
  need qemu-aarch64 qemu-user
  need $triplet-g++-12 g++-12-$triplet
  [[ -d /usr/src/googletest ]] || { echo "install googletest (Debian: googletest)" >&2; exit 1; }
  local cross=(-G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
    -DCMAKE_C_COMPILER="$triplet-gcc-12" -DCMAKE_CXX_COMPILER="$triplet-g++-12"
    -DCMAKE_BUILD_TYPE=Release)
  if [[ ! -d $build/sysroot/lib/cmake/GTest ]]; then
    cmake -S /usr/src/googletest -B "$build/googletest" "${cross[@]}" -DBUILD_GMOCK=OFF \
      -DCMAKE_INSTALL_PREFIX="$build/sysroot" -DCMAKE_INSTALL_LIBDIR=lib >/dev/null
    cmake --build "$build/googletest" --target install --parallel "$jobs" >/dev/null
  fi
  # A header only; the rest of /usr/include is the host's.
  ln -sf /usr/include/xxhash.h "$build/sysroot/include/"
  cmake -S . -B "$build" "${cross[@]}" -DCQKV_WERROR=ON -DCQKV_BUILD_APPS=OFF \
    -DGTest_DIR="$build/sysroot/lib/cmake/GTest" \
    -DCMAKE_CXX_FLAGS="-isystem $build/sysroot/include" >/dev/null
  cmake --build "$build" --target "${tests[@]}" --parallel "$jobs"
  run_tests "$build/bin" dotprod qemu-aarch64 -L "/usr/$triplet" -cpu cortex-a72
  run_level "$build/bin" neon_dotprod qemu-aarch64 -L "/usr/$triplet" -cpu max
}

case ${1:-both} in
  nehalem | aarch64) "$1" ;;
  both) nehalem; aarch64 ;;  # not with &&, which would turn off set -e
  *) echo "usage: scripts/qemu_tests.sh [nehalem|aarch64]" >&2; exit 2 ;;
esac
