#!/usr/bin/env bash
# Installs the Debian packages that cqkv is built and tested with, if any is missing.
# Needs root (or sudo) only then. Python 3 with pip comes from the system or, if it
# has none, from Debian too.
#
#   scripts/install_deps.sh [lint]      lint: what checks the form of sources, besides
set -euo pipefail

packages=(
  g++ cmake ninja-build make git
  libgtest-dev libcli11-dev nlohmann-json3-dev libeigen3-dev libxxhash-dev libgomp1 valgrind
)
[[ ${1:-} == lint ]] && packages+=(clang-format-14)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3 python3-pip)
python3 -c 'import ensurepip' >/dev/null 2>&1 || packages+=(python3-venv)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
fi

echo "installing ${missing[*]}" >&2
sudo=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "run as root: apt-get install ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  "${missing[@]}" >/dev/null
