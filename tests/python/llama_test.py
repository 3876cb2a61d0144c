"""The Python package beside llama-cpp-python: caches of real models, coded, and what is refused.

Every test is a process of its own: what llama.cpp has loaded stays loaded."""

import os
import subprocess
import sys
import tempfile
import unittest

MODEL, MAKE = os.environ["CQKV_TEST_MODEL"], os.environ["CQKV_MAKE_CODEBOOK"]


def python(source, **variables):
    """Runs a program; its output, or an AssertionError with it."""
    result = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=300,
        env={**os.environ, "MODEL": MODEL, "BOOK": BOOK, **variables})
    if result.returncode != 0:
        raise AssertionError(f"exit {result.returncode}:\n{result.stdout}\n{result.stderr[-3000:]}")
    return result


FOLDER = tempfile.TemporaryDirectory()
BOOK = os.path.join(FOLDER.name, "book.gguf")
PROGRAM = os.path.join(os.path.dirname(sys.executable), "cqkv")

START = """
import os, cqkv
model, book = os.environ["MODEL"], os.environ["BOOK"]
def make(**options):
    return cqkv.Llama(model, book, **{"n_ctx": 512, "seed": 1, **options})
def text(llm, prompt, n=24):
    return llm(prompt, max_tokens=n, temperature=0)["choices"][0]["text"]
"""

# What a call raises.
REFUSED = START + """
def refused(call):
    try:
        call()
    except cqkv.Error as error:
        print(error)
    else:
        raise SystemExit("not refused")
"""


class LlamaTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        subprocess.run([PROGRAM, "calibrate", "-m", MODEL, "-o", BOOK, "--config", "8c8b",
                        "--weights", "uniform", "--n-tokens", "2048"], check=True,
                       capture_output=True)

    @classmethod
    def tearDownClass(cls):
        FOLDER.cleanup()

    # The buffer of 512 cells: 16 bits would take 11.25 MiB.
    def test_the_cache_is_coded(self):
        result = python(START + "llm = make(verbose=True); print(text(llm, 'Once upon a time'))")
        self.assertRegex(result.stderr, r"cqkv: all 30 layers are coded with book\.gguf")
        self.assertRegex(result.stderr, r"CQ0 KV buffer size = +\d\.\d+ MiB")
        self.assertGreater(len(result.stdout.strip()), 20)

    # A quiet llama-cpp-python shows no log; the program is told all the same.
    def test_what_would_not_be_coded_is_an_error(self):
        other = os.path.join(FOLDER.name, "other.gguf")
        source = REFUSED + """
refused(lambda: cqkv.Llama(model, os.environ["OTHER"], verbose=False))
"""
        subprocess.run([MAKE, other, "30", "8c8b", "2", "32", "llama"], check=True)
        self.assertRegex(python(source, OTHER=other).stdout,
                         "layer 0 has 192 key channels, want those of .*other.gguf")

    def test_wrong_options_are_named(self):
        out = python(REFUSED + """
refused(lambda: make(flash_attn=False))
refused(lambda: make(n_gpu_layers=4))
refused(lambda: cqkv.Llama("/nowhere/model.gguf", learn=True))
refused(lambda: cqkv.Llama(model, kv=17, learn=True))
refused(lambda: make(main_gpu=1))
refused(lambda: make(type_k=8))
refused(lambda: cqkv.Llama(model, "/nowhere.gguf"))
""").stdout.splitlines()
        for line, words in zip(out, ("flash_attn: got False, want True", "n_gpu_layers: got 4",
                                     "/nowhere/model.gguf", "--kv: got '17'",
                                     "main_gpu", "type_k: got 8", "/nowhere.gguf"), strict=True):
            self.assertIn(words, line)

    # What was attached before, and is gone since, is no matter.
    def test_a_later_codebook_replaces_an_earlier_one(self):
        python(START + """
import shutil
shutil.copy(book, book + ".copy")
cqkv.attach(book + ".copy", window=0, sinks=0)
os.remove(book + ".copy")
text(make(n_gpu_layers=999), "Hello", 2)
""")

    # The same text with the class of llama-cpp-python itself; without a codebook its own cache.
    def test_attach_and_detach(self):
        python(START + """
import llama_cpp
number = cqkv.attach(book)
def own():
    return llama_cpp.Llama(model_path=model, n_ctx=512, seed=1, n_gpu_layers=99, flash_attn=True,
                           split_mode=llama_cpp.LLAMA_SPLIT_MODE_NONE, main_gpu=number)
coded = text(own(), "The capital of France is")
assert coded == text(make(), "The capital of France is")
cqkv.detach()
plain = llama_cpp.Llama(model_path=model, n_ctx=512, seed=1, flash_attn=True)
assert text(own(), "The capital of France is") == text(plain, "The capital of France is")
""")

    # SmolLM2's codebook comes with the package, of 1 bit.
    def test_a_codebook_is_found(self):
        out = python(REFUSED + """
llm = cqkv.Llama(model, n_ctx=512, verbose=False)
print(text(llm, "The capital of France is", 8))
refused(lambda: cqkv.Llama(model, kv=0.3))
""").stdout
        self.assertIn("Paris", out)
        self.assertRegex(out, "no codebook of 0.30 bits .*SmolLM2-135M-Instruct.cq-1.00b.gguf of "
                              "1.00 bits.*in Python: learn=True")

    # Against all logits of llama-cpp-python; and what requests share is no matter, to the bit.
    def test_log_probabilities(self):
        python(START + """
import numpy as np
from cqkv.eval.scorer import Scorer, open_model
words = "The capital of France is Paris, and that of Italy is Rome. The capital of Spain is Madrid."
for cache in ("f16", book):
    llm = open_model(model, cache, 512)
    tokens = llm.tokenize(words.encode(), add_bos=False)
    scorer = Scorer(llm)
    # The same context, one that differs from the first token on, one that goes another way later.
    requests = [(tokens[:9], tokens[9:12]), (tokens[:9], tokens[9:20]), (tokens[3:9], tokens[9:12]),
                (tokens[:9], tokens[12:14]), (tokens[:5] + tokens[8:12], tokens[12:14])]
    shared = [scorer.score(*request) for request in requests]
    alone = []
    for request in requests:
        scorer.forget()
        alone.append(scorer.score(*request))
    if cache == book:
        assert shared == alone, (shared, alone)
    np.testing.assert_allclose([s[0] for s in shared], [s[0] for s in alone], atol=1e-2)
    scorer.close()
    llm.close()
plain = cqkv.llama._device().llama_cpp.Llama(model, n_ctx=512, logits_all=True, flash_attn=True,
                                            verbose=False)
scorer = Scorer(open_model(model, "f16", 512))
plain.eval(tokens[:20])
logits = np.array(plain.scores[8:19], dtype=np.float64)
logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
got, greedy = scorer.score(tokens[:9], tokens[9:20])
expected = logits[np.arange(11), tokens[9:20]].sum()
assert abs(got - expected) < 0.02, (got, expected)
assert greedy == bool((logits.argmax(axis=1) == tokens[9:20]).all())
""")

    def test_saved_states_come_back(self):
        python(START + """
llm = make()
llm.eval(llm.tokenize(b"A long time ago, in a house by the sea, there lived a man who"))
state = llm.save_state()
def go_on(llm, n=12):
    out = llm.tokenize(b" could", add_bos=False)  # logits are no part of a state
    for _ in range(n):
        llm.eval([out[-1]])
        out.append(llm.sample(temp=0))
    return out
first = go_on(llm)
llm.load_state(state)
assert go_on(llm) == first
fresh = make()
fresh.load_state(state)
assert go_on(fresh) == first
""")

    # In one process, one after the other and side by side.
    def test_two_models(self):
        python(START + """
first, second = make(), make()
alone = text(first, "Once upon a time")
assert text(second, "Once upon a time") == alone
text(second, "Another beginning, for the other cache,")
assert text(first, "Once upon a time") == alone
first.close()
assert text(second, "Once upon a time") == alone
""")

    # A second copy of ggml would have its own list of devices.
    def test_a_second_copy_of_ggml_is_named(self):
        out = python(REFUSED + """
import ctypes, glob, importlib.util, shutil, tempfile
lib = importlib.util.find_spec("llama_cpp").submodule_search_locations[0] + "/lib/"
copy = shutil.copytree(lib, tempfile.mkdtemp() + "/lib")
import llama_cpp
ctypes.CDLL(copy + "/libggml-base.so")
refused(make)
""").stdout
        self.assertRegex(out, "2 copies of libggml-base .*want exactly that of llama-cpp-python")

    def test_one_openmp(self):
        out = python(START + """
llm = make(); text(llm, "Hello", 2)
import re
print(len(set(re.findall(r"(\\S*libgomp\\S*)$", open("/proc/self/maps").read(), re.M))))
""").stdout
        self.assertEqual(out.strip(), "1")

    # Another ggml than the one built for, as far as the package can be told.
    def test_another_version_is_named(self):
        out = python(REFUSED + """
import cqkv.llama
cqkv.llama.GGML_VERSION = "0.0.1"
refused(make)
""").stdout
        self.assertRegex(out, r"has ggml \d+\.\d+\.\d+, this cqkv is built for .* 0\.0\.1: pip install")

    def test_without_llama_cpp_python(self):
        out = python(REFUSED + """
import sys
sys.modules["llama_cpp"] = None
refused(make)
""").stdout
        self.assertRegex(out, r"not installed: pip install llama-cpp-python==\d")

    def test_the_command(self):
        result = subprocess.run([PROGRAM, "inspect", BOOK], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("30 layers", result.stdout)
        result = subprocess.run([PROGRAM, "serve", "-m", MODEL, "--kv-codebook", BOOK],
                                capture_output=True, text=True, env={**os.environ, "PATH": ""})
        self.assertEqual(result.returncode, 1)
        self.assertIn("llama-server does not exist, nor is it on PATH", result.stderr)


if __name__ == "__main__":
    unittest.main()
