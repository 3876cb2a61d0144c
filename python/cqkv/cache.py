"""A coded cache with attention on the codes, as NumPy arrays in and out."""

import ctypes
import dataclasses
from typing import Optional

import numpy as np

from cqkv._library import Attention, CacheOptions, Error, RopeStruct, count, integer, lib, struct
from cqkv.codebook import float_rows


@dataclasses.dataclass
class Rope:
    """A rotary embedding, with the parameters of ggml_rope_ext: pair i of the token at position p
    is turned by p * freq_scale * freq_base ** (-2 i / n_dims) / freq_factors[i] radians; the others
    are those of YaRN."""

    n_dims: int  #: Channels of a head that are rotated.
    neox: bool = True  #: Channel i is paired with i + n_dims / 2; else 2 i with 2 i + 1.
    n_ctx_orig: int = 0
    freq_base: float = 10000.0
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    freq_factors: Optional[np.ndarray] = None  #: [n_dims / 2]

    def _struct(self):
        factors = self.freq_factors
        if factors is not None:
            factors = np.ascontiguousarray(factors, dtype=np.float32)
            if factors.shape != (self.n_dims // 2,):
                raise Error(f"rope: got factors of shape {factors.shape}, want "
                            f"({self.n_dims // 2},)")
        result = struct(RopeStruct, n_dims=self.n_dims, neox=int(self.neox),
                        n_ctx_orig=self.n_ctx_orig, freq_base=self.freq_base,
                        freq_scale=self.freq_scale, ext_factor=self.ext_factor,
                        attn_factor=self.attn_factor, beta_fast=self.beta_fast,
                        beta_slow=self.beta_slow,
                        freq_factors=None if factors is None else factors.ctypes.data)
        result.factors = factors  # alive as long as the structure
        return result


def whole_numbers(values, dtype, what):
    """An array of that type, without gaps; numbers that it does not hold are refused."""
    values = np.asarray(values)
    if values.size == 0:
        return values.astype(dtype)
    bounds = np.iinfo(dtype)
    if (not np.issubdtype(values.dtype, np.integer) or values.min() < bounds.min
            or values.max() > bounds.max):
        raise Error(f"{what}: got {values.ravel()[:4]}..., want whole numbers from {bounds.min} to "
                    f"{bounds.max}")
    return np.ascontiguousarray(values, dtype=dtype)


class Cache:
    """Cells for tokens in one or more streams, all layers that the codebook codes.

    A step: `plan`, then of each layer `store_keys`, `store_values` and `attend`, then `commit`
    (or `abandon` after a failure). Another order is refused and changes nothing.

    Threads: one call at a time; the cache works with threads of its own.
    Errors: cqkv.Error for arrays of another shape, rows that are not finite, a wrong order.
    """

    def __init__(self, codebook, n_cells, n_streams=1, n_sequences=1, window=None, sinks=None,
                 n_threads=1):
        """n_cells: tokens of one stream, rounded up to a multiple of 64. n_sequences: that share
        the cells of one stream. window, sinks: the tokens kept exactly; None: as the codebook
        says."""
        options = struct(CacheOptions, n_cells=count(n_cells, "n_cells"),
                         n_streams=count(n_streams, "n_streams"),
                         n_sequences=integer(n_sequences, "n_sequences"),
                         window=-1 if window is None else integer(window, "window"),
                         sinks=-1 if sinks is None else integer(sinks, "sinks"),
                         n_threads=integer(n_threads, "n_threads"))
        handle = ctypes.c_void_p()
        lib.cache_create(codebook._handle, ctypes.byref(options), ctypes.byref(handle))
        self._handle = handle
        self._codebook = codebook  # must outlive the cache, and stay as it is
        codebook._n_caches += 1
        self._n_planned = 0
        self._n_cells = (n_cells + 63) // 64 * 64

    def __del__(self):
        if getattr(self, "_handle", None):
            lib.cache_free(self._handle)
            self._codebook._n_caches -= 1

    @property
    def nbytes(self):
        """Of codes, exact rows and tables."""
        return lib.cache_bytes(self._handle)

    def plan(self, positions, cells=None):
        """Begins a step: token i has positions[i] in its sequence and goes into cells[i], counted
        over all streams: stream * n_cells + the cell in it. Without cells: cell = position."""
        positions = whole_numbers(positions, np.int32, "plan: positions")
        cells = whole_numbers(positions if cells is None else cells, np.uintp, "plan: cells")
        if positions.ndim != 1 or cells.shape != positions.shape:
            raise Error(f"plan: got positions of shape {positions.shape} and cells of shape "
                        f"{cells.shape}, want (n,) twice")
        lib.cache_plan(self._handle, positions.ctypes.data, cells.ctypes.data, len(positions))
        self._n_planned = len(positions)

    def _rows_of_step(self, layer, kind, rows):
        shape = self._codebook._coded(layer, kind)
        rows = float_rows(rows, shape.n_channels, f"store_{kind}")
        if len(rows) != self._n_planned:
            raise Error(f"store_{kind}: got {len(rows)} rows, want one for each of the "
                        f"{self._n_planned} tokens of the step")
        return rows

    def store_keys(self, layer, rows, rope=None):
        """Codes the keys of the step: [n, n_kv_heads * head_dim], as they come out of the rotary
        embedding `rope`, which is undone; without it keys are not rotated, and attention rotates
        nothing."""
        rows = self._rows_of_step(layer, "keys", rows)
        given = None if rope is None else rope._struct()
        lib.cache_store_keys(self._handle, integer(layer, "layer"), rows.ctypes.data, rows.shape[1],
                             None if given is None else ctypes.byref(given))

    def store_values(self, layer, rows):
        """Codes the values of the step: [n, n_kv_heads * head_dim]."""
        rows = self._rows_of_step(layer, "values", rows)
        lib.cache_store_values(self._handle, integer(layer, "layer"), rows.ctypes.data, rows.shape[1])

    def attend(self, layer, queries, scale=None, softcap=0.0, mask=None):
        """Attention of the step's tokens over the cells of their streams.

            out[i, h] = sum over cells t of softmax(scale <q[i, h], k[t]> + mask[i, t]) v[t]

        queries  [n, n_heads, head_dim], rotated; n_heads is a multiple of the KV heads.
        scale    None: 1 / sqrt(head_dim).
        softcap  Above 0: a score s becomes softcap * tanh(s / softcap).
        mask     [n, n_cells], added to scores, -inf: not seen; turned into 16-bit floats. None:
                 a token sees the cells of its stream with its own position and before.
        returns  [n, n_heads, head_dim]

        The result does not depend on which tokens share the step, nor on threads, to the bit.
        """
        shape = self._codebook._coded(layer, "keys")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if (queries.ndim != 3 or len(queries) != self._n_planned
                or queries.shape[1] % shape.n_kv_heads or queries.shape[2] != shape.head_dim):
            raise Error(f"attend: got queries of shape {queries.shape}, want ({self._n_planned}, "
                        f"a multiple of {shape.n_kv_heads}, {shape.head_dim})")
        if mask is not None:
            mask = np.ascontiguousarray(mask, dtype=np.float16)
            if mask.shape != (len(queries), self._n_cells):
                raise Error(f"attend: got a mask of shape {mask.shape}, want "
                            f"({len(queries)}, {self._n_cells})")
        values = self._codebook._coded(layer, "values")
        out = np.empty((*queries.shape[:2], values.head_dim), dtype=np.float32)
        attention = struct(Attention, layer=layer, n_heads=queries.shape[1],
                           scale=shape.head_dim ** -0.5 if scale is None else scale,
                           softcap=softcap, queries=queries.ctypes.data,
                           mask=None if mask is None else mask.ctypes.data, out=out.ctypes.data)
        lib.cache_attend(self._handle, ctypes.byref(attention))
        return out

    def commit(self):
        """Ends the step: its tokens are in the cache. Refused before all is stored."""
        lib.cache_commit(self._handle)
        self._n_planned = 0

    def abandon(self):
        """Ends the step after a failure: its cells have no token."""
        lib.cache_abandon(self._handle)
        self._n_planned = 0

    def shift(self, first, shifts):
        """Adds shifts[i] to the position of cell first + i, where there is a token."""
        shifts = whole_numbers(shifts, np.int32, "shift").ravel()
        lib.cache_shift(self._handle, count(first, "first"), shifts.ctypes.data, len(shifts))

    def copy(self, source, target, n):
        """Copies n cells, all layers."""
        lib.cache_copy(self._handle, count(source, "source"), count(target, "target"),
                       count(n, "n"))

    def save(self, first, n):
        """The bytes of n cells, all layers."""
        first, n = count(first, "first"), count(n, "n")
        saved = np.empty(lib.cache_saved_bytes(self._handle, n), dtype=np.uint8)
        lib.cache_save(self._handle, first, n, saved.ctypes.data)
        return saved.tobytes()

    def load(self, first, n, saved):
        """What `save` returned, of a cache with the same codebook."""
        first, n = count(first, "first"), count(n, "n")
        wanted = lib.cache_saved_bytes(self._handle, n)
        if len(saved) != wanted:
            raise Error(f"load: got {len(saved)} bytes, want {wanted} for {n} cells")
        data = np.frombuffer(saved, dtype=np.uint8)
        lib.cache_load(self._handle, first, n, data.ctypes.data)

    def clear(self):
        """No cell has a token, and no step is under way."""
        lib.cache_clear(self._handle)
        self._n_planned = 0
