#!/usr/bin/env bash
# Packs the Python package: one wheel for any Python 3. It holds no llama.cpp: that of the installed
# llama-cpp-python is used, of the version in llama_cpp.sh. Prints the wheel's path.
#
#   scripts/wheel.sh [BUILD [DESTINATION]]      default: the release build, dist
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:-build}
destination=${2:-dist}
stage=$build/wheel
rm -rf "$stage" "$destination"/cqkv-*.whl
cmake --install "$build" --component python --strip --prefix "$stage" >/dev/null

tools=$build/wheel-tools
[[ -x $tools/bin/python ]] || python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
  -r python/build-requirements.txt >&2
mkdir -p "$destination"
"$tools/bin/python" -m wheel pack "$stage" --dest-dir "$destination" >&2
realpath "$destination"/cqkv-*.whl
