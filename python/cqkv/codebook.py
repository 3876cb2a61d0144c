"""Codebooks and codes as NumPy arrays."""

import ctypes
import os
from typing import NamedTuple

import numpy as np

from cqkv._library import (Error, LearnOptions, ShapeStruct, count, integer, lib, path_bytes,
                           struct)

_KINDS = ("keys", "values")


class Shape(NamedTuple):
    """How the keys or values of a layer are coded."""

    n_kv_heads: int
    head_dim: int
    n_codes: int  #: Of one row.
    code_bits: int  #: Of one code.

    @property
    def n_channels(self):
        return self.n_kv_heads * self.head_dim


def kind_number(kind):
    if kind not in _KINDS:
        raise Error(f"got {kind!r}, want 'keys' or 'values'")
    return _KINDS.index(kind)


def float_rows(rows, n_channels, what):
    """The rows as the library reads them: [n, n_channels] 32-bit floats, finite, without gaps."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != n_channels:
        raise Error(f"{what}: got an array of shape {rows.shape}, want (n, {n_channels})")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise Error(f"{what}: row {bad.argmax()} has numbers that are not finite")
    return rows


class Codebook:
    """The centroids of a model, by layer, keys or values, KV head and group of channels.

    `Codebook.open(path)` reads a file of `cqkv calibrate`. `Codebook(n_layers)` is empty, to be
    filled by `learn` and written by `save`.

    `kind` is "keys" or "values" throughout. Keys are those before their rotary embedding.

    Threads: any number may use a codebook at a time, but not while one of them learns.
    Errors: cqkv.Error for arrays of another shape, numbers that are not finite, layers or sides
    that are not there, and files that cannot be read or written.
    """

    def __init__(self, n_layers, architecture="llama", window=128, sinks=4):
        """An empty codebook. `architecture` is the name in the model's GGUF file; window and sinks
        are the recent and the first tokens that caches keep exactly by default."""
        handle = ctypes.c_void_p()
        lib.codebook_create(integer(n_layers, "n_layers"), architecture.encode(),
                            integer(window, "window"), integer(sinks, "sinks"),
                            ctypes.byref(handle))
        self._handle = handle
        self._n_caches = 0

    @classmethod
    def open(cls, path):
        """Reads a codebook file. Any file is safe to pass."""
        handle = ctypes.c_void_p()
        lib.codebook_open(path_bytes(path), ctypes.byref(handle))
        book = cls.__new__(cls)
        book._handle = handle
        book._n_caches = 0
        return book

    def __del__(self):
        if getattr(self, "_handle", None):
            lib.codebook_free(self._handle)

    @property
    def n_layers(self):
        return lib.codebook_n_layers(self._handle)

    @property
    def bits_per_channel(self):
        return lib.codebook_bits_per_channel(self._handle)

    @property
    def identity(self):
        """What tells codebooks apart, 16 hexadecimal digits, as `cqkv inspect` shows it."""
        return f"{lib.codebook_identity(self._handle):016x}"

    def shape(self, layer, kind):
        """The Shape of one side of a layer, or None if it is not coded."""
        found = ShapeStruct()
        lib.codebook_shape(self._handle, integer(layer, "layer"), kind_number(kind),
                           ctypes.byref(found))
        shape = Shape(found.n_kv_heads, found.head_dim, found.n_codes, found.code_bits)
        return shape if shape.n_kv_heads > 0 else None

    def _coded(self, layer, kind):
        shape = self.shape(layer, kind)
        if shape is None:
            raise Error(f"layer {layer}: the codebook does not code its {kind}")
        return shape

    def encode(self, layer, kind, rows):
        """Codes of rows: of each group of channels the nearest centroid, the lowest of equals.

        rows     [n, n_kv_heads * head_dim], finite; turned into 32-bit floats.
        returns  [n, n_codes], uint16.
        """
        shape = self._coded(layer, kind)
        rows = float_rows(rows, shape.n_channels, "encode")
        codes = np.empty((len(rows), shape.n_codes), dtype=np.uint16)
        lib.encode(self._handle, layer, kind_number(kind), rows.ctypes.data, len(rows),
                   shape.n_channels, codes.ctypes.data)
        return codes

    def decode(self, layer, kind, codes):
        """The rows that codes stand for: [n, n_codes] to [n, n_kv_heads * head_dim]."""
        shape = self._coded(layer, kind)
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != shape.n_codes:
            raise Error(f"decode: got codes of shape {codes.shape}, want (n, {shape.n_codes})")
        if not np.issubdtype(codes.dtype, np.integer):
            raise Error(f"decode: got codes of type {codes.dtype}, want whole numbers")
        if codes.size and not 0 <= codes.min() <= codes.max() < 1 << shape.code_bits:
            raise Error(f"decode: got codes from {codes.min()} to {codes.max()}, want 0 to "
                        f"{(1 << shape.code_bits) - 1}")
        codes = np.ascontiguousarray(codes, dtype=np.uint16)
        rows = np.empty((len(codes), shape.n_channels), dtype=np.float32)
        lib.decode(self._handle, layer, kind_number(kind), codes.ctypes.data, len(codes),
                   rows.ctypes.data, shape.n_channels)
        return rows

    def learn(self, layer, kind, rows, n_kv_heads, group_dim=8, code_bits=8, weights=None,
              max_iterations=100, seed=1, n_threads=None):
        """Learns one side of a layer by k-means, one problem a group of `group_dim` channels.

        rows     [n, n_kv_heads * head_dim], finite, at least as many as centroids.
        weights  [n, n_kv_heads * head_dim / group_dim], at least 0, or None: all alike. The
                 paper's are sums over the group of squared gradients of the loss.
        returns  The share of the variance that is lost, mean over groups.

        The result does not depend on n_threads. A codebook that caches use is refused: it would
        change under them. Source: arXiv 2405.03917, section 3.2.1.
        """
        if self._n_caches > 0:
            raise Error(f"learn: {self._n_caches} caches use this codebook; learn before making "
                        "them")
        rows = np.asarray(rows)
        n_kv_heads, group_dim = integer(n_kv_heads, "n_kv_heads"), integer(group_dim, "group_dim")
        if rows.ndim != 2 or n_kv_heads < 1 or rows.shape[1] % n_kv_heads != 0:
            raise Error(f"learn: got rows of shape {rows.shape} for {n_kv_heads} KV heads, want "
                        f"(n, {n_kv_heads} * head_dim)")
        if group_dim < 1 or rows.shape[1] // n_kv_heads % group_dim != 0:
            raise Error(f"learn: got groups of {group_dim} channels, want a divisor of "
                        f"{rows.shape[1] // n_kv_heads}")
        rows = float_rows(rows, rows.shape[1], "learn")
        if weights is not None:
            weights = float_rows(weights, rows.shape[1] // group_dim, "learn: weights")
            if len(weights) != len(rows):
                raise Error(f"learn: got {len(weights)} rows of weights, want {len(rows)}")
        options = struct(LearnOptions, n_kv_heads=n_kv_heads, head_dim=rows.shape[1] // n_kv_heads,
                         group_dim=group_dim, code_bits=integer(code_bits, "code_bits"),
                         max_iterations=integer(max_iterations, "max_iterations"),
                         seed=count(seed, "seed"),
                         n_threads=integer(n_threads or os.cpu_count() or 1, "n_threads"),
                         weights=None if weights is None else weights.ctypes.data)
        error = ctypes.c_double()
        lib.codebook_learn(self._handle, integer(layer, "layer"), kind_number(kind), rows.ctypes.data, len(rows),
                           rows.shape[1], ctypes.byref(options), ctypes.byref(error))
        return error.value

    def save(self, path):
        """Writes a codebook file, complete or not at all."""
        lib.codebook_save(self._handle, path_bytes(path))
