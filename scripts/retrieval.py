#!/usr/bin/env python3
"""What a model finds again in a long prompt, by the cache that it is read from.

Two tasks, asked of llama-server greedily, without a chat template: a pass key said once in a text
about something else, and one value of a table of keys and values. The place of what is asked for is
drawn anew for each prompt; all caches are asked the same prompts.

  scripts/retrieval.py --model M.gguf [--tokens 500 2000] [--prompts 100]
                       [--cache f16 q8_0 q4_0 ...] [--codebook CB.gguf ...] [--out FOLDER]

Prints, for each cache and size, how many answers begin with what was asked for.
"""

import argparse
import os
import random
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tests", "e2e"), os.path.join(ROOT, "python", "cqkv", "eval")]

import questions  # noqa: E402: found through the line above
from llama_client import LlamaServer  # noqa: E402

BIN = os.path.join(ROOT, "build", "bin")
TEXT = os.path.join(ROOT, "data", "wikitext2-test.txt")
TASKS = ("pass key", "table")


def server(options, cache, codebook):
    size = max(options.tokens) + 64
    theirs = ["-t", str(options.threads), "-c", str(size), "-np", "1", "--cache-ram", "0"]
    if codebook:
        command = [os.path.join(BIN, "cqkv"), "serve", "-m", options.model, "--kv-codebook",
                   codebook, "--", *theirs]
    else:
        command = [os.path.join(BIN, "llama-server"), "-m", options.model, "-fa", "on", "-ngl", "0",
                   "-ctk", cache, "-ctv", cache, *theirs]
    environment = {key: value for key, value in os.environ.items() if key != "GGML_BACKEND_PATH"}
    name = os.path.basename(codebook or cache)
    return LlamaServer(command, os.path.join(options.out, name + ".log"), environment)


def ask_pass_key(rng, sentences, n_sentences):
    def lines(rng):
        begin = rng.randrange(len(sentences) - n_sentences)
        return sentences[begin:begin + n_sentences]

    return questions.pass_key(rng, lines)


def ask_table(rng, sentences, n_lines):
    del sentences
    return questions.table(rng, n_lines)


def prompts(options, count_tokens):
    """The same for all caches: {(task, size): [(prompt, answer)]}."""
    with open(TEXT, encoding="utf-8") as file:
        sentences = questions.sentences(file.read())
    result = {}
    for task, make in zip(TASKS, (ask_pass_key, ask_table)):
        for size in options.tokens:
            rng = random.Random(f"{options.seed} {task} {size}")
            result[task, size] = [fitting(make, rng, sentences, size, count_tokens)
                                  for _ in range(options.prompts)]
    return result


def fitting(make, rng, sentences, size, count_tokens):
    """A prompt of at most `size` tokens, and nearly as many."""
    seed = rng.random()
    n = size // 15
    while True:
        prompt, answer = make(random.Random(seed), sentences, n)
        n_tokens = count_tokens(prompt)
        if n_tokens <= size:
            return prompt, answer
        n = min(n - 1, n * size // n_tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--codebook", nargs="*", default=[])
    parser.add_argument("--cache", nargs="*", default=["f16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=os.path.join(ROOT, "build", "retrieval"))
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    asked = None
    for cache, codebook in [(name, None) for name in options.cache] + [
            (None, name) for name in options.codebook]:
        running = server(options, cache, codebook)
        try:
            if asked is None:
                asked = prompts(options, lambda text: len(
                    running.post("/tokenize", {"content": text})["tokens"]))
            for (task, size), pairs in asked.items():
                n_right = 0
                for prompt, answer in pairs:
                    got = running.complete(prompt, -1, 8)["content"]
                    n_right += re.match(rf"\s*{answer}(?!\d)", got) is not None
                print(f"{os.path.basename(codebook or cache):24} {task:10} {size:6} tokens "
                      f"{n_right:4} of {len(pairs)}", flush=True)
        finally:
            running.stop()


if __name__ == "__main__":
    main()
