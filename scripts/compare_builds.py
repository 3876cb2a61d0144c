#!/usr/bin/env python3
"""Whether two builds of cqkv do the same, to the bit: perplexities and divergences of a coded cache,
the text that llama-completion writes with it, and the state that it saves (codes, exact rows). With
--speed instead: attention of both builds at every level, in turns.

  scripts/compare_builds.py --old FOLDER --new FOLDER --model M.gguf --codebook CB.gguf...
                            [--text FILE] [--ctx-size 512] [--chunks 2]
  scripts/compare_builds.py --old FOLDER --new FOLDER --speed scalar avx2 avx512 [--rounds 7]

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


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}:\n{result.stderr[-2000:]}")
    return result.stdout


def figures(folder, options, codebook):
    text = run(os.path.join(folder, "cqkv"), "perplexity", "-m", options.model, "--kv-codebook",
               codebook, "-f", options.text, "-c", str(options.ctx_size), "--chunks",
               str(options.chunks), "-t", "2", "--json", "-")
    out = json.loads(text)
    del out["tool"]  # names the build
    return out


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


def attention_speed(folder, level):
    """Nanoseconds a token and head by codec: one query, and a prompt's 512."""
    environment = {**os.environ, "CQKV_FORCE_ISA": level}
    times = {}
    for queries in ("1", "512"):
        out = subprocess.run(
            [os.path.join(folder, "cqkv"), "bench", "attention", "--codec", "8c8b,4c8b,2c8b",
             "--type", "q4_0", "--tokens", "1024", "--queries", queries, "-t", "1", "--seconds", "0.5",
             "--json", "-"], capture_output=True, text=True, check=True, env=environment).stdout
        for row in json.loads(out)["rows"]:
            if row["impl"] == "cqkv":
                times[f"{row['type']}, {queries} queries"] = row["ns_per_token_head"]
    return times


def compare_speed(options):
    """The fastest of some runs in turns; prints new / old."""
    for level in options.speed:
        fastest = [{}, {}]
        for _ in range(options.rounds):
            for which, folder in enumerate((options.old, options.new)):
                for name, time in attention_speed(folder, level).items():
                    fastest[which][name] = min(time, fastest[which].get(name, time))
        for name, old in fastest[0].items():
            print(f"{level}, {name}: {old:.2f} ns, {fastest[1][name]:.2f} ns, "
                  f"ratio {fastest[1][name] / old:.3f}")


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--old", "--new"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--model")
    parser.add_argument("--codebook", nargs="+", default=[])
    parser.add_argument("--speed", nargs="+", default=[], metavar="LEVEL")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--text", default=os.path.join(ROOT, "data", "wikitext2-test.txt"))
    parser.add_argument("--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=2)
    options = parser.parse_args()
    compare_speed(options)
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
