#!/usr/bin/env bash
# clang-tidy over our sources (or the files given), with the compile commands of the
# release build: run `make build` first.
#
#   scripts/lint.sh [FILE ...]
#   scripts/lint.sh --changed [COMMIT]   what changed since that commit; default: in the last five
set -euo pipefail
cd "$(dirname "$0")/.."

command -v clang-tidy >/dev/null || { echo "install clang-tidy (Debian: clang-tidy)" >&2; exit 1; }
[[ -f build/compile_commands.json ]] || { echo "run make build first" >&2; exit 1; }
files=("$@")
if [[ ${1:-} == --changed ]]; then
  since=${2:-$(git rev-list --max-count=6 HEAD | tail -n1)}
  mapfile -t files < <(git diff --name-only --diff-filter=d "$since" -- 'src/*.cpp' 'apps/*.cpp')
  [[ ${#files[@]} -gt 0 ]] || exit 0
fi
[[ ${#files[@]} -gt 0 ]] || mapfile -t files < <(git ls-files 'src/*.cpp' 'apps/*.cpp')
# The compile commands are g++'s: clang does not know all its warning flags.
printf '%s\n' "${files[@]}" |
  xargs -P "$(nproc)" -n 4 clang-tidy -p build --quiet --extra-arg=-Wno-unknown-warning-option
