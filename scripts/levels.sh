#!/usr/bin/env bash
# The tests of what depends on the instruction set and does not go over all levels by itself, once
# under each level that this processor has.
set -euo pipefail
cd "$(dirname "$0")/.."

levels=$(build/bin/cqkv info --json | python3 -c \
  'import json, sys; print(*json.load(sys.stdin)["instruction_sets_supported"])')
for level in $levels; do
  echo "CQKV_FORCE_ISA=$level"
  CQKV_FORCE_ISA=$level ctest --test-dir build -L per_isa --output-on-failure --quiet \
    --no-tests=error
done
