"""Tasks on coded caches, through lm-evaluation-harness (pip install lm-eval).

    python -m cqkv.eval -m model.gguf --kv-codebook model.cq-1.00b.gguf --tasks cq_piqa lookup_1k

runs the 16-bit cache, each codebook, and each codebook without its exact window, on the same
questions, and prints the paired differences. As a model of the harness: cqkv.eval.model.CacheLM. The
tasks are in tasks/, made without a network; the harness takes them by --include_path.
"""

#: llama.cpp's own types of cache: ggml's numbers by name.
STOCK_TYPES = {"f16": 1, "q8_0": 8, "q5_1": 7, "q4_0": 2, "iq4_nl": 20}
