"""libcqkv.so, loaded by ctypes: its functions with their types, and errors as exceptions. What the
functions mean is in include/cqkv.h; nothing of llama.cpp is here."""

import ctypes
import operator
import os
import pathlib
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_size_t, c_uint64, c_void_p

FOLDER = pathlib.Path(__file__).resolve().parent / "bin"


class Error(Exception):
    """What cqkv refused, and why. `code` is the name of the status: "invalid argument", ..."""

    def __init__(self, message, code="invalid argument"):
        super().__init__(message)
        self.code = code


_CODES = ("ok", "invalid argument", "not found", "corrupt", "mismatch", "unsupported",
          "resource exhausted", "io error", "cancelled", "internal")


class ShapeStruct(ctypes.Structure):
    _fields_ = [("n_kv_heads", c_int), ("head_dim", c_int), ("n_codes", c_int),
                ("code_bits", c_int)]


class LearnOptions(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("n_kv_heads", c_int), ("head_dim", c_int),
                ("group_dim", c_int), ("code_bits", c_int), ("max_iterations", c_int),
                ("seed", c_uint64), ("n_threads", c_int), ("weights", c_void_p)]


class CacheOptions(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("n_cells", c_size_t), ("n_streams", c_size_t),
                ("n_sequences", c_int), ("window", c_int), ("sinks", c_int), ("n_threads", c_int)]


class RopeStruct(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("n_dims", c_int), ("neox", c_int), ("n_ctx_orig", c_int),
                ("freq_base", c_float), ("freq_scale", c_float), ("ext_factor", c_float),
                ("attn_factor", c_float), ("beta_fast", c_float), ("beta_slow", c_float),
                ("freq_factors", c_void_p)]


class Attention(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("layer", c_int), ("n_heads", c_int), ("scale", c_float),
                ("softcap", c_float), ("queries", c_void_p), ("mask", c_void_p), ("out", c_void_p)]


def path_bytes(path):
    """A path as the library takes it."""
    path = os.fsencode(path)
    if b"\0" in path:
        raise Error(f"path {path!r}: has a zero byte")
    return path


def integer(value, what, lowest=-2**31, highest=2**31 - 1):
    """A whole number that C's type holds: ctypes would cut it without a word."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not lowest <= number <= highest:
        raise Error(f"{what}: got {value!r}, want a whole number from {lowest} to {highest}")
    return number


def count(value, what):
    """A number of things: not negative."""
    return integer(value, what, 0, 2**63 - 1)


def struct(kind, **fields):
    """A structure that begins with its size."""
    return kind(size=ctypes.sizeof(kind), **fields)


# name: (what it returns, arguments). "status": an error is raised.
_FUNCTIONS = {
    "last_error": (c_char_p, []),
    "version": (c_char_p, []),
    "isa": (c_char_p, []),
    "codebook_open": ("status", [c_char_p, POINTER(c_void_p)]),
    "codebook_free": (None, [c_void_p]),
    "codebook_n_layers": (c_int, [c_void_p]),
    "codebook_bits_per_channel": (c_double, [c_void_p]),
    "codebook_identity": (c_uint64, [c_void_p]),
    "codebook_shape": ("status", [c_void_p, c_int, c_int, POINTER(ShapeStruct)]),
    "encode": ("status", [c_void_p, c_int, c_int, c_void_p, c_size_t, c_size_t, c_void_p]),
    "decode": ("status", [c_void_p, c_int, c_int, c_void_p, c_size_t, c_void_p, c_size_t]),
    "codebook_create": ("status", [c_int, c_char_p, c_int, c_int, POINTER(c_void_p)]),
    "codebook_learn": ("status", [c_void_p, c_int, c_int, c_void_p, c_size_t, c_size_t,
                                  POINTER(LearnOptions), POINTER(c_double)]),
    "codebook_save": ("status", [c_void_p, c_char_p]),
    "cache_create": ("status", [c_void_p, POINTER(CacheOptions), POINTER(c_void_p)]),
    "cache_free": (None, [c_void_p]),
    "cache_bytes": (c_size_t, [c_void_p]),
    "cache_plan": ("status", [c_void_p, c_void_p, c_void_p, c_size_t]),
    "cache_store_keys": ("status", [c_void_p, c_int, c_void_p, c_size_t, POINTER(RopeStruct)]),
    "cache_store_values": ("status", [c_void_p, c_int, c_void_p, c_size_t]),
    "cache_attend": ("status", [c_void_p, POINTER(Attention)]),
    "cache_commit": ("status", [c_void_p]),
    "cache_abandon": (None, [c_void_p]),
    "cache_shift": ("status", [c_void_p, c_size_t, c_void_p, c_size_t]),
    "cache_copy": ("status", [c_void_p, c_size_t, c_size_t, c_size_t]),
    "cache_saved_bytes": (c_size_t, [c_void_p, c_size_t]),
    "cache_save": ("status", [c_void_p, c_size_t, c_size_t, c_void_p]),
    "cache_load": ("status", [c_void_p, c_size_t, c_size_t, c_void_p]),
    "cache_clear": (None, [c_void_p]),
}


class _Library:
    """The functions, without their prefix "cqkv_"."""

    def __init__(self):
        library = ctypes.CDLL(str(FOLDER / "libcqkv.so.0"))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, "cqkv_" + name)
            function.argtypes = arguments
            function.restype = c_int if result == "status" else result
            setattr(self, name, self._checked(function) if result == "status" else function)

    def _checked(self, function):
        def call(*arguments):
            status = function(*arguments)
            if status != 0:
                raise Error(self.last_error().decode(errors="replace"), _CODES[status])
        return call


lib = _Library()


def version():
    """Of the library: "0.1.0"."""
    return lib.version().decode()


def isa():
    """The instruction set in use: "avx2"."""
    return lib.isa().decode()
