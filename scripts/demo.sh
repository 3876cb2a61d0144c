#!/usr/bin/env bash
# What cqkv does, on a real model in a few minutes: learns a 2-bit and a 1-bit
# codebook, compares both coded caches with the 16-bit one, with and without the exact
# window, and generates a text from the 1-bit cache with llama.cpp's own program.
#
#   scripts/demo.sh [MODEL.gguf]      default: SmolLM2-135M-Instruct
#
# Environment: WEIGHTS=uniform for architectures without gradients; CHUNKS, THREADS.
# Codebooks are kept in build/demo, so a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${1:-$(scripts/models.sh smollm2)}
weights=${WEIGHTS:-fisher}
chunks=${CHUNKS:-4}
threads=${THREADS:-$(nproc)}
cqkv=build/bin/cqkv
[[ -f $model ]] || { echo "demo: no file $model" >&2; exit 1; }

folder=build/demo/$(basename "$model" .gguf)
mkdir -p "$folder"
codebooks=()
variants=()
missing=()
for config in 4c8b 8c8b; do
  codebook=$folder/$config-$weights.gguf
  codebooks+=("$codebook")
  variants+=("$codebook" "$codebook@window:0@sinks:0")
  [[ -f $codebook ]] || missing+=("$config")
done
if [[ ${#missing[@]} -gt 0 ]]; then
  echo "== Learning codebooks: ${missing[*]} ($weights weights, 32,768 tokens of text and code)"
  # One run of the model serves both.
  "$cqkv" calibrate -m "$model" -f data/wikitext2-train-1200k.txt data/code-calib.txt \
    -o "$folder/{config}-$weights.gguf" --config "$(IFS=,; echo "${missing[*]}")" \
    --weights "$weights" -t "$threads"
fi

echo
echo "== Comparing with the 16-bit cache on text that was not learned from"
"$cqkv" perplexity -m "$model" --kv-codebook "${variants[@]}" -f data/wikitext2-test.txt \
  -c 2048 --chunks "$chunks" -t "$threads" --json "$folder/figures.json" >/dev/null
python3 scripts/demo_table.py "$folder/figures.json"

echo
echo "== Generating from the 1-bit cache with its exact window (llama-completion, unmodified)"
"$cqkv" run -m "$model" --kv-codebook "${codebooks[1]}" -- -no-cnv -n 80 -c 2048 \
  --temp 0.7 --seed 7 --repeat-penalty 1.1 -t "$threads" -p "The three most important inventions in the history of mankind are" \
  2>"$folder/run.log" || { tail -n 20 "$folder/run.log" >&2; exit 1; }
echo
