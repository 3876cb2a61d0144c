"""What the tasks of this folder ask, from files at hand or drawn by a seed: no network. Each function
with @_dataset returns {"test": [...]} (and "train" for examples), which becomes what the harness
wants of a custom_dataset.

Files are looked for in CQKV_DATA or in the package's own folder."""

import functools
import json
import os
import pathlib
import random
import re

import datasets

from cqkv.eval import questions

_PACKAGED = pathlib.Path(__file__).resolve().parents[2] / "data"
_CHARACTERS_A_TOKEN = 4.2  # of English; a prompt of "1k" has about a thousand tokens


def _file(name):
    return pathlib.Path(os.environ.get("CQKV_DATA") or _PACKAGED) / name


def _lines(name):
    return [json.loads(line) for line in _file(name).read_text(encoding="utf-8").splitlines()]


def _dataset(function):
    @functools.wraps(function)
    def call(**arguments):
        return {split: datasets.Dataset.from_list(rows)
                for split, rows in function(**arguments).items()}
    return call


@_dataset
def hellaswag(**_):
    lines = _file("hellaswag-val-2000.txt").read_text(encoding="utf-8").splitlines()
    return {"test": [{"query": lines[i], "label": int(lines[i + 1]), "choices": lines[i + 2:i + 6]}
                     for i in range(0, len(lines) - 5, 6)]}


@_dataset
def piqa(**_):
    return {"test": _lines("piqa-valid-a.jsonl")}


@_dataset
def gsm8k(**_):
    return {"test": _lines("gsm8k-test-a.jsonl"), "train": _lines("gsm8k-train-800.jsonl")}


def _sentences():
    return questions.sentences(_file("wikitext2-test.txt").read_text(encoding="utf-8"))


def _filler(rng, sentences, n_characters):
    """Sentences that follow each other, of so many characters in all."""
    begin = rng.randrange(len(sentences))
    lines, n = [], 0
    while n < n_characters:
        lines.append(sentences[(begin + len(lines)) % len(sentences)])
        n += len(lines[-1]) + 1
    return lines


def _draw(make, name, tokens, prompts, seed):
    rng = random.Random(f"{seed} {name} {tokens}")
    size = tokens * _CHARACTERS_A_TOKEN
    return {"test": [make(rng, size) for _ in range(prompts)]}


@_dataset
def passkey(tokens, prompts=100, seed=1, **_):
    """A number said once in a text about something else."""
    sentences = _sentences()

    def make(rng, size):
        prompt, key = questions.pass_key(rng, lambda rng: _filler(rng, sentences, size))
        return {"prompt": prompt, "answer": key}

    return _draw(make, "passkey", tokens, prompts, seed)


@_dataset
def lookup(tokens, prompts=100, seed=1, **_):
    """One value of a table of names and numbers."""
    def make(rng, size):
        prompt, value = questions.table(rng, size / 42)  # a line of 14 characters has 10 tokens
        return {"prompt": prompt, "answer": value}

    return _draw(make, "lookup", tokens, prompts, seed)


@_dataset
def quote(tokens, prompts=100, seed=1, **_):
    """The words that follow some words of the text, word for word."""
    sentences = _sentences()

    def make(rng, size):
        words = " ".join(_filler(rng, sentences, size)).split(" ")
        at = min(rng.randrange(len(words) // 20, 9 * len(words) // 10), len(words) - 24)
        begin, answer = words[at:at + 8], words[at + 8:at + 24]
        return {"prompt": " ".join(words) + "\n\nOnce more, from the text above, word for word: \""
                          + " ".join(begin), "answer": " ".join(answer)}

    return _draw(make, "quote", tokens, prompts, seed)


def number_found(doc, results):
    """Whether the generated text begins with the number."""
    return {"acc": float(re.match(rf"\s*{doc['answer']}(?!\d)", results[0]) is not None)}


def words_quoted(doc, results):
    """The share of the words that are right, up to the first wrong one."""
    wanted, got = doc["answer"].split(" "), results[0].strip(" ").split(" ")
    n = 0
    while n < min(len(wanted), len(got)) and wanted[n] == got[n]:
        n += 1
    return {"acc": n / len(wanted)}
