#!/usr/bin/env bash
# An environment in which the Python package is tested as its users have it: the built wheel beside
# llama-cpp-python. Prints the environment's Python on the last line.
#
#   scripts/python_env.sh WHEEL FOLDER [--build]
#
# llama-cpp-python comes from the same pinned source package as the programs (llama_cpp.sh). Its
# libraries are links to those built from it already; with --build they are built once more, as pip
# does by default (about 10 minutes on 2 cores).
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$1 folder=$2
prefix=$(scripts/llama_cpp.sh)
version=$(basename "$prefix" | cut -d- -f2)
archive=$(dirname "$prefix")/llama_cpp_python-$version.tar.gz

[[ -x $folder/bin/python ]] || python3 -m venv "$folder"
python=$folder/bin/python
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }
install --require-hashes -r python/build-requirements.txt -r python/test-requirements.txt
if [[ ${3:-} == --build ]]; then
  install --no-deps --no-build-isolation --force-reinstall "$archive"
elif ! "$python" -c 'import importlib.util as u; exit(u.find_spec("llama_cpp") is None)'; then
  CMAKE_ARGS=-DLLAMA_BUILD=OFF install --no-deps --no-build-isolation "$archive"
  libraries=$("$python" -c 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])')/lib
  mkdir -p "$libraries"
  ln -sf "$prefix"/build/bin/lib{llama,ggml}*.so* "$libraries"/
fi
install --no-deps --force-reinstall "$wheel"
echo "$python"
