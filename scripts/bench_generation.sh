#!/usr/bin/env bash
# Generation speed on a coded cache against llama.cpp's own cache types, with
# llama-bench, interleaved so that a noisy machine disturbs all alike.
#
#   scripts/bench_generation.sh MODEL.gguf CODEBOOK.gguf [DEPTH [ROUNDS [TOKENS]]]
#
# Prints tokens a second of every round and, as the figure that counts, the median
# over rounds of the ratio to q4_0 within the same round.
set -euo pipefail
cd "$(dirname "$0")/.."

model=$1
codebook=$2
depth=${3:-2048}
rounds=${4:-5}
tokens=${5:-64}
threads=${THREADS:-$(nproc)}

# bench NAME ARGUMENTS...: tokens a second
bench() {
  build/bin/llama-bench -m "$model" -t "$threads" -p 0 -n "$tokens" -d "$depth" -r 1 -fa 1 -o json \
    "$@" 2>/dev/null | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["avg_ts"])'
}

coded() {
  GGML_BACKEND_PATH=$PWD/build/bin/libggml-cq.so CQKV_CODEBOOK=$codebook bench -dev CQ0 -ngl 99 "$@"
}

grep -m1 'model name' /proc/cpuinfo | sed 's/.*: //'
build/bin/cqkv info | grep -i -m1 'active' || true
for ((i = 0; i < rounds; i++)); do
  printf '%s %s %s\n' "$(bench -ctk f16 -ctv f16)" "$(bench -ctk q4_0 -ctv q4_0)" "$(coded)"
done | python3 -c '
import statistics, sys
rows = [tuple(map(float, line.split())) for line in sys.stdin]
print("round   f16 t/s  q4_0 t/s  coded t/s  coded/q4_0  coded/f16")
for i, (f16, q4, cq) in enumerate(rows):
    print(f"{i + 1:5}  {f16:8.2f}  {q4:8.2f}  {cq:9.2f}  {cq / q4:10.2f}  {cq / f16:9.2f}")
print(f"median of ratios: coded/q4_0 {statistics.median(c / q for _, q, c in rows):.2f}, "
      f"coded/f16 {statistics.median(c / f for f, _, c in rows):.2f}")
'
