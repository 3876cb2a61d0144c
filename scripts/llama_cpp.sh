#!/usr/bin/env bash
# Fetches and builds the one version of llama.cpp that cqkv is written against,
# outside the tree, once per version, flags, compiler and processor. Prints the
# folder on the last line of standard output: it holds src/ (the unpacked source)
# and build/bin (programs and libraries).
#
# The source comes as the pinned source package llama-cpp-python; only its
# vendored llama.cpp is used. Always Release with NDEBUG: ggml's debug assertions
# demand that a buffer type allocates at least the nominal size of a tensor, and
# a coded cache is smaller (docs/architecture.md, "Rules").
#
# Environment: CQKV_CACHE_DIR (default ~/.cache/cqkv), CQKV_JOBS (default: nproc).
set -euo pipefail

readonly package=llama-cpp-python
readonly version=0.3.36
readonly sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly targets=(llama llama-cli llama-completion llama-server llama-perplexity
                  llama-bench llama-batched-bench llama-fit-params llama-imatrix llama-results)
readonly flags=(
  -DCMAKE_BUILD_TYPE=Release
  -DBUILD_SHARED_LIBS=ON
  -DGGML_NATIVE=ON
  -DLLAMA_BUILD_TESTS=OFF
  -DLLAMA_BUILD_EXAMPLES=OFF
  -DLLAMA_BUILD_APP=OFF
  -DLLAMA_BUILD_UI=OFF
  -DLLAMA_USE_PREBUILT_UI=OFF
  -DLLAMA_OPENSSL=OFF
)

cache=${CQKV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cqkv}
jobs=${CQKV_JOBS:-$(nproc)}
# GGML_NATIVE compiles for this processor, so the processor's features are part of the key.
cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo || uname -m)
key=$(printf '%s\n' "$version" "${flags[*]}" "${targets[*]}" "$(c++ --version | head -n1)" "$cpu" |
      sha256sum | cut -c1-12)
prefix=$cache/llama.cpp-$version-$key

say() { printf 'llama.cpp: %s\n' "$*" >&2; }

fetch_source() {
  local archive=$cache/llama_cpp_python-$version.tar.gz
  if [[ ! -f $archive ]]; then
    say "fetching source package $package $version"
    local staging
    staging=$(mktemp -d "$cache/fetch.XXXXXX")
    # pip runs the package's metadata step, so it needs its build tools: leave isolation on.
    # The hash is checked by us below; a source package for another version fails there.
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary "$package" --dest "$staging" "$package==$version" >&2; then
      say "cannot download $package==$version with pip; check that the package index is reachable"
      rm -rf "$staging"
      exit 1
    fi
    mv "$staging"/*.tar.gz "$archive"
    rm -rf "$staging"
  fi
  local got
  got=$(sha256sum "$archive" | cut -d' ' -f1)
  if [[ $got != "$sha256" ]]; then
    say "$archive: SHA-256 is $got, want $sha256; delete the file and try again"
    exit 1
  fi
  local staging
  staging=$(mktemp -d "$cache/unpack.XXXXXX")
  tar -xzf "$archive" -C "$staging" --strip-components=3 \
      "llama_cpp_python-$version/vendor/llama.cpp"
  mkdir -p "$prefix"
  mv "$staging" "$prefix/src"
}

build() {
  say "building $version with $jobs jobs (once; about 20 minutes on 2 cores) in $prefix"
  local generator=()
  command -v ninja >/dev/null && generator=(-G Ninja)
  cmake -S "$prefix/src" -B "$prefix/build" "${generator[@]}" "${flags[@]}" >"$prefix/configure.log" 2>&1 ||
    { tail -n 30 "$prefix/configure.log" >&2; say "configuring failed, see $prefix/configure.log"; exit 1; }
  # With a terminal show ninja's counter, else one line in fifty.
  cmake --build "$prefix/build" --parallel "$jobs" --target "${targets[@]}" 2>&1 |
    tee "$prefix/build.log" | awk '/^\[/ {n++; if (n % 25 == 0) print "llama.cpp: " $1} /error:|FAILED/ {print}' >&2 ||
    { tail -n 30 "$prefix/build.log" >&2; say "building failed, see $prefix/build.log"; exit 1; }
  touch "$prefix/complete"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[[ -d $prefix/src ]] || fetch_source
[[ -f $prefix/complete ]] || build
printf '%s\n' "$prefix"
