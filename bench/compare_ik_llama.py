#!/usr/bin/env python3
"""Attention over codes beside that of ik_llama.cpp, the fastest on CPUs that is known.

  bench/compare_ik_llama.py --ik FOLDER [--cqkv build/bin/cqkv] [--rounds 5] [--seconds 1]
                            [--threads 1] [--kv-heads 2] [--tokens 4096] [--json FNAME]

FOLDER is a checkout of https://github.com/ikawrakow/ik_llama.cpp (figures in docs/kernels.md:
commit 8337e4cd) whose `build` has its ggml:

  cmake -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_IQK_FA_ALL_QUANTS=OFF
  cmake --build build --target ggml

The two cannot share a process, so processes take turns, and of each the fastest run counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
IK_TYPES = ("f16", "q8_0")


def build(ik, folder):
    libraries = os.path.join(ik, "build", "ggml", "src")
    program = os.path.join(folder, "ggml_attention")
    subprocess.run(["c++", "-std=c++20", "-O2", "-I", os.path.join(ik, "ggml", "include"),
                    os.path.join(HERE, "ggml_attention.cpp"), "-L", libraries, "-lggml",
                    f"-Wl,-rpath,{libraries}", "-o", program], check=True)
    return program


def ours(options):
    """{(impl, type): ns of the fastest run}: coded and stock llama.cpp's f16."""
    result = subprocess.run(
        [options.cqkv, "bench", "attention", "--codec", options.codec, "--type", "f16",
         "--head-dim", str(options.head_dim), "--gqa", str(options.gqa),
         "--kv-heads", str(options.kv_heads), "--tokens", str(options.tokens),
         "--threads", str(options.threads), "--seconds", str(2 * options.seconds), "--json", "-"],
        check=True, capture_output=True, text=True)
    out = json.loads(result.stdout)
    return {("cqkv" if row["impl"] == "cqkv" else "llama.cpp", row["type"]):
            row["ns_per_token_head"] for row in out["rows"]}, out


def theirs(program, kind, options):
    arguments = [kind, options.head_dim, options.gqa, options.kv_heads, options.tokens,
                 options.threads, options.seconds]
    result = subprocess.run([program, *map(str, arguments)], check=True, capture_output=True,
                            text=True)
    return float(result.stdout.split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--ik", required=True)
    parser.add_argument("--cqkv", default=os.path.join(HERE, "..", "build", "bin", "cqkv"))
    parser.add_argument("--codec", default="8c8b")
    for name, default in (("head-dim", 128), ("gqa", 4), ("kv-heads", 2), ("tokens", 4096),
                          ("threads", 1), ("rounds", 5)):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    times = {}
    origin = {}
    with tempfile.TemporaryDirectory() as folder:
        program = build(options.ik, folder)
        for _ in range(options.rounds):
            mine, origin = ours(options)
            for kind in IK_TYPES:
                mine["ik_llama.cpp", kind] = theirs(program, kind, options)
            for key, value in mine.items():
                times.setdefault(key, []).append(value)
    print(f"{options.gqa} query heads of each of {options.kv_heads} KV heads of "
          f"{options.head_dim}, {options.tokens} tokens, threads: {options.threads}, "
          f"{origin['instruction_set']}, {origin['cpu']}")
    print(f"{'':20s} {'fastest':>9s} {'median':>9s}   times as long as ours, by the fastest")
    fastest = {key: min(values) for key, values in times.items()}
    own = fastest["cqkv", options.codec]
    for key, values in times.items():
        print(f"{' '.join(key):20s} {fastest[key]:9.2f} {statistics.median(values):9.2f}   "
              f"{fastest[key] / own:.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**origin, "rows": [
                {"impl": key[0], "type": key[1], "head_dim": options.head_dim, "gqa": options.gqa,
                 "n_kv_heads": options.kv_heads, "n_tokens": options.tokens,
                 "threads": options.threads, "ns_per_token_head": fastest[key],
                 "rounds": values} for key, values in times.items()]}, file, indent=1)


if __name__ == "__main__":
    main()
