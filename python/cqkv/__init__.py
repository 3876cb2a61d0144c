"""A key-value cache at about 1 bit per channel, from Python.

With llama-cpp-python:

    import cqkv
    llm = cqkv.Llama("model.gguf", learn=True, n_ctx=8192)
    print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])

Codes as NumPy arrays, for research:

    book = cqkv.Codebook.open("model-1b.gguf")
    codes = book.encode(0, "keys", rows)
    back = book.decode(0, "keys", codes)

The program `cqkv` (calibrate, perplexity, inspect, ...) comes along: `cqkv --help`.
"""

from cqkv._library import Error, isa, version
from cqkv.cache import Cache, Rope
from cqkv.codebook import Codebook, Shape
from cqkv.llama import Llama, attach, detach, find_codebook, last_error

__version__ = version()
__all__ = ["Cache", "Codebook", "Error", "Llama", "Rope", "Shape", "attach", "detach",
           "find_codebook", "isa", "last_error", "version"]
