#!/usr/bin/env bash
# Formats our sources with clang-format 14; with --check only reports.
set -euo pipefail
cd "$(dirname "$0")/.."

format=clang-format-14
command -v $format >/dev/null || { echo "install $format (Debian: clang-format-14)" >&2; exit 1; }
mode=(-i)
[[ ${1:-} == --check ]] && mode=(--dry-run --Werror)
git ls-files '*.h' '*.c' '*.cpp' | xargs $format "${mode[@]}"
