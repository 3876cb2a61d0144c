#!/usr/bin/env python3
"""Whether two builds of cqkv do the same, to the bit: perplexities and divergences of a coded cache,
the text that llama-completion writes with it, and the state that it saves (codes, exact rows).

  scripts/compare_builds.py --old FOLDER --new FOLDER --model M.gguf --codebook CB.gguf...
                            [--text FILE] [--ctx-size 512] [--chunks 2]

A folder is a build's bin: cqkv, libggml-cq.so and llama.cpp's programs. Fails if anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIMES = ("seconds", "tokens_per_second", "path", "tool", "codebook")  # of a row: may differ


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{result.stderr[-2000:]}")
    return result.stdout


def without_times(value):
    """Figures without what no two runs have alike."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items()
                if not any(word in key for word in TIMES)}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def figures(folder, options, codebook):
    text = run(os.path.join(folder, "cqkv"), "perplexity", "-m", options.model, "--kv-codebook",
               codebook, "-f", options.text, "-c", str(options.ctx_size), "--chunks",
               str(options.chunks), "-t", "2", "--json", "-")
    return without_times(json.loads(text))


def generation(folder, options, codebook, name):
    """The text of a prompt's continuation, and a hash of the saved state."""
    state = os.path.join(name, "state")
    with open(options.text, encoding="utf-8") as file:
        prompt = file.read(3000)
    text = run(os.path.join(folder, "cqkv"), "run", "-m", options.model, "--kv-codebook", codebook,
               "--", "-no-cnv", "-n", "32", "-c", "2048", "--temp", "0", "-t", "2", "-p", prompt,
               "--prompt-cache", state, "--prompt-cache-all", "--no-display-prompt")
    with open(state, "rb") as file:
        return text.replace(state, "state"), hashlib.sha256(file.read()).hexdigest()


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--old", "--new", "--model"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--codebook", nargs="+", required=True)
    parser.add_argument("--text", default=os.path.join(ROOT, "data", "wikitext2-test.txt"))
    parser.add_argument("--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=2)
    options = parser.parse_args()
    n_different = 0
    for codebook in options.codebook:
        old, new = (figures(folder, options, codebook) for folder in (options.old, options.new))
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            old_run = generation(options.old, options, codebook, one)
            new_run = generation(options.new, options, codebook, other)
        for what, same in (("figures", old == new), ("text", old_run[0] == new_run[0]),
                           ("saved state", old_run[1] == new_run[1])):
            print(f"{os.path.basename(codebook)}: {what} {'the same' if same else 'DIFFER'}")
            n_different += not same
        if old != new:
            print(json.dumps(old), json.dumps(new), sep="\n")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
