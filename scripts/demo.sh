#!/usr/bin/env bash
# What cqkv does, on a real model in some minutes: learns two 1-bit codebooks, the paper's
# method and ours, compares both coded caches with the 16-bit one on ordinary text and on text
# that comes again from far back, and lets llama.cpp's own program copy a text from each cache.
#
#   scripts/demo.sh [MODEL.gguf]      default: SmolLM2-135M-Instruct
#
# Environment: WEIGHTS=uniform for architectures without gradients (then with the paper's groups
# alone, at 1 and at 2 bits); CHUNKS, THREADS. Codebooks are kept in build/demo, so a second run is
# quick.
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
paper=$folder/8c8b-$weights.gguf
ours=$folder/1.00b-$weights.gguf
flags=(--bits 1)
if [[ $weights == uniform ]]; then
  ours=$folder/4c8b-$weights.gguf
  flags=(--config 4c8b)
fi

# A text at once, from the codebook that comes along, if it is of this model.
if "$cqkv" find -m "$model" >/dev/null 2>&1; then
  echo "== A text from a cache of 1 bit a channel, with a codebook that is there already (cqkv run)"
  "$cqkv" run -m "$model" -- -no-cnv -n 60 -c 2048 --temp 0 -t "$threads" \
    -p "The three most important inventions of the nineteenth century were" 2>"$folder/first.log" ||
    { tail -n 20 "$folder/first.log" >&2; exit 1; }
  echo
fi

# learn FILE FLAG...
learn() {
  local file=$1
  shift
  [[ -f $file ]] || "$cqkv" calibrate -m "$model" -f data/wikitext2-train-1200k.txt \
    data/code-calib.txt -o "$file" --weights "$weights" -t "$threads" "$@"
}

# compare FIGURES FLAG...
compare() {
  local figures=$folder/$1
  shift
  "$cqkv" perplexity -m "$model" --kv-codebook "$ours" "$paper" -f data/wikitext2-test.txt \
    -c 2048 --chunks "$chunks" -t "$threads" --json "$figures" "$@" >/dev/null
  python3 scripts/demo_table.py "$figures"
}

echo "== Learning codebooks ($weights weights, 32,768 tokens of text and code): ${flags[*]}, and the paper's 8c8b"
learn "$ours" "${flags[@]}"
learn "$paper" --config 8c8b

echo
echo "== Text that was not learned from, against the 16-bit cache"
compare figures.json
echo
echo "== The same text, said twice: the second time, 1024 tokens later, can be copied from far back"
compare repeat.json --repeat

echo
echo "== A text copied from far back (llama-completion, unmodified, greedy)"
python3 scripts/demo_prompt.py data/wikitext2-test.txt "$folder/prompt.txt"
copy=(-no-cnv -n 60 -c 2048 --temp 0 --no-display-prompt -t "$threads" -f "$folder/prompt.txt")
log=$folder/run.log
show() {
  local name=$1
  shift
  printf '%-22s %s\n' "$name" "$("$@" 2>"$log" | tr '\n' ' ' || { tail -n 20 "$log" >&2; exit 1; })"
}
show "16-bit cache:" build/bin/llama-completion -m "$model" -fa on "${copy[@]}"
for codebook in "$ours" "$paper"; do
  show "$(basename "$codebook" .gguf):" "$cqkv" run -m "$model" --kv-codebook "$codebook" -- "${copy[@]}"
done
