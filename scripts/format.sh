#!/usr/bin/env bash
# Formats our sources with clang-format 14; with --check only reports.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v clang-format >/dev/null || { echo "install clang-format (Debian: clang-format)" >&2; exit 1; }
mode=(-i)
[[ ${1:-} == --check ]] && mode=(--dry-run --Werror)
git ls-files '*.h' '*.c' '*.cpp' '*.inc' | xargs clang-format "${mode[@]}"
