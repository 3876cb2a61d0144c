"""Models with a cache of a given kind, and log probabilities of continuations. Nothing of
lm-evaluation-harness is here."""

import ctypes

import llama_cpp
import numpy as np

import cqkv
from cqkv.eval import STOCK_TYPES


def open_model(model_path, cache, n_ctx, n_threads=None, window=None, sinks=None):
    """A llama_cpp.Llama with the cache: the path of a codebook, or a type of llama.cpp's ("f16",
    "q8_0", ...), which stays on the CPU."""
    common = {"n_ctx": n_ctx, "n_threads": n_threads, "n_threads_batch": n_threads,
              "verbose": False}
    if cache not in STOCK_TYPES:
        return cqkv.Llama(model_path, cache, window=window, sinks=sinks, **common)
    cqkv.detach()
    return llama_cpp.Llama(model_path=str(model_path), n_gpu_layers=0, flash_attn=True,
                           type_k=STOCK_TYPES[cache], type_v=STOCK_TYPES[cache], **common)


class Scorer:
    """Log probabilities of continuations. What two requests in a row begin with is decoded once."""

    def __init__(self, llm):
        self._llm = llm
        self._context = llm.ctx
        self._n_batch = llm.n_batch
        self._n_vocab = llm.n_vocab()
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._cached = []

    def close(self):
        llama_cpp.llama_batch_free(self._batch)

    def forget(self):
        """The cache is used by others; it is empty afterwards."""
        self._llm.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._cached = []

    def _decode(self, tokens, first, n_wanted):
        """Tokens at positions first, ...; the logits of the last n_wanted, [n_wanted, n_vocab]."""
        logits = []
        for begin in range(0, len(tokens), self._n_batch):
            part = tokens[begin:begin + self._n_batch]
            self._batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self._batch.token[i] = token
                self._batch.pos[i] = first + begin + i
                self._batch.n_seq_id[i] = 1
                self._batch.seq_id[i][0] = 0
                self._batch.logits[i] = begin + i >= len(tokens) - n_wanted
            if llama_cpp.llama_decode(self._context, self._batch) != 0:
                raise cqkv.Error(f"llama_decode failed: {cqkv.last_error()}", "internal")
            for i in range(len(part)):
                if self._batch.logits[i]:
                    row = llama_cpp.llama_get_logits_ith(self._context, i)
                    logits.append(np.ctypeslib.as_array(
                        ctypes.cast(row, ctypes.POINTER(ctypes.c_float)),
                        (self._n_vocab,)).astype(np.float64))
        return np.array(logits)

    def score(self, context, continuation):
        """(sum of log p of the continuation's tokens, whether each is the most likely one)."""
        tokens = (context + continuation)[:-1]
        n = len(continuation)
        n_kept = 0
        most = min(len(self._cached), len(tokens) - n)
        while n_kept < most and self._cached[n_kept] == tokens[n_kept]:
            n_kept += 1
        if not llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, n_kept,
                                             -1):
            self.forget()  # a cache that cannot go back: recurrent, or with sliding windows
            n_kept = 0
        logits = self._decode(tokens[n_kept:], n_kept, n)
        self._cached = tokens
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(n), continuation]
        total = (chosen - np.log(np.exp(logits).sum(axis=1))).sum()
        return float(total), bool((logits.argmax(axis=1) == continuation).all())
