"""The KV device inside llama-cpp-python: loading it into the llama.cpp that package brings, telling
it codebooks, and making a `llama_cpp.Llama` whose cache is coded.

llama-cpp-python is imported on first use only. The device must be loaded into its copy of ggml: a
second one would have a registry of its own, and nothing would happen.
"""

import ctypes
import os
import pathlib
import re
import subprocess
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p

from cqkv._build import GGML_VERSION, LLAMA_CPP_PYTHON
from cqkv._library import FOLDER, Error

_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU
_SAID_ALL = 1
_FLAGS = {"n_gpu_layers": (-1, 99), "flash_attn": (True,), "offload_kqv": (True,),
          "type_k": (None, 1), "type_v": (None, 1)}  # 1: GGML_TYPE_F16


def _import_llama_cpp():
    try:
        import llama_cpp
    except ImportError as error:
        raise Error("llama-cpp-python is not installed: pip install "
                    f"llama-cpp-python=={LLAMA_CPP_PYTHON}", "not found") from error
    return llama_cpp


def _mapped_libraries():
    """Files of ggml that this process has loaded."""
    maps = pathlib.Path("/proc/self/maps").read_text()
    return sorted(set(re.findall(r"(/\S+/libggml(?:-base)?\.so[.\d]*)$", maps, re.M)))


def _ggml(stem):
    """A library of ggml that is loaded already."""
    found = [path for path in _mapped_libraries() if os.path.basename(path).startswith(stem + ".so")]
    if len({os.stat(path).st_ino for path in found}) != 1:
        raise Error(f"this process has loaded {len(found)} copies of {stem} "
                    f"({', '.join(found) or 'none'}), want exactly that of llama-cpp-python: each "
                    "copy has a list of devices of its own", "unsupported")
    return ctypes.CDLL(found[0])


def _check_version(llama_cpp, base):
    version = getattr(base, "ggml_version", None)
    got = "unknown"
    if version is not None:
        version.restype = c_char_p
        got = version().decode()
    if got != GGML_VERSION:
        raise Error(f"llama-cpp-python {llama_cpp.__version__} has ggml {got}, this cqkv is built "
                    f"for and tested with {GGML_VERSION}: pip install "
                    f"llama-cpp-python=={LLAMA_CPP_PYTHON}", "mismatch")


class _Device:
    """The loaded device: ggml's list of devices, and the functions that the device offers."""

    def __init__(self):
        llama_cpp = _import_llama_cpp()
        self.llama_cpp = llama_cpp
        _check_version(llama_cpp, _ggml("libggml-base"))
        self._ggml, self._base = _ggml("libggml"), _ggml("libggml-base")
        self._declare()
        registry = self._ggml.ggml_backend_reg_by_name(b"CQ")
        if not registry:
            registry = self._ggml.ggml_backend_load(os.fsencode(FOLDER / "libggml-cq.so"))
        if not registry:
            raise Error(f"{FOLDER / 'libggml-cq.so'} could not be loaded; see standard error",
                        "unsupported")
        self.set_codebook = self._function(registry, "cqkv_set_codebook", c_char_p, c_char_p)
        self.set_window = self._function(registry, "cqkv_set_window", None, c_int, c_int, c_int,
                                         c_int)
        self.last_error = self._function(registry, "cqkv_last_error", c_char_p)
        self._report = self._function(registry, "cqkv_report", c_int, POINTER(c_char_p))

    def _declare(self):
        for library, name, result, *arguments in (
                (self._ggml, "ggml_backend_load", c_void_p, c_char_p),
                (self._ggml, "ggml_backend_reg_by_name", c_void_p, c_char_p),
                (self._ggml, "ggml_backend_dev_count", c_size_t),
                (self._ggml, "ggml_backend_dev_get", c_void_p, c_size_t),
                (self._base, "ggml_backend_dev_type", c_int, c_void_p),
                (self._base, "ggml_backend_dev_name", c_char_p, c_void_p),
                (self._base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def _function(self, registry, name, result, *arguments):
        address = self._base.ggml_backend_reg_get_proc_address(registry, name.encode())
        if not address:
            raise Error(f"the KV device that is loaded has no {name}: it is of another version",
                        "mismatch")
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def devices(self):
        """Names of the devices that llama.cpp puts layers on, in its order."""
        every = [self._ggml.ggml_backend_dev_get(i)
                 for i in range(self._ggml.ggml_backend_dev_count())]
        # llama.cpp takes GPUs first, integrated ones only if there is no other.
        found = {kind: [self._base.ggml_backend_dev_name(device).decode() for device in every
                        if self._base.ggml_backend_dev_type(device) == kind]
                 for kind in _GPU_TYPES}
        return found[1] or found[2]

    def report(self):
        """(how much of the newest context is coded, the device's line about it), once."""
        line = c_char_p()
        return self._report(byref(line)), line.value.decode()


_device = None
_codebooks = []


def _loaded():
    global _device
    if _device is None:
        _device = _Device()
    return _device


def attach(codebook, window=None, sinks=None, spare=None, n_sequences=1):
    """From now on caches of the codebook's model are coded, of every `llama_cpp.Llama` in this
    process that is made with

        n_gpu_layers=99, flash_attn=True, split_mode=llama_cpp.LLAMA_SPLIT_MODE_NONE,
        main_gpu=cqkv.attach(...)

    (cqkv.Llama sets these). More codebooks, for further models, are attached by further calls.

    codebook     path of a file of `cqkv calibrate`.
    window, sinks, spare  exact recent and first tokens, and rows beside them for taking text back;
                 None: as the codebook says. They hold for all codebooks.
    n_sequences  that will share a cache.
    returns      the number of the device among those of llama.cpp, for main_gpu.
    """
    device = _loaded()
    path = os.path.abspath(os.fspath(codebook))
    if ":" in path:
        raise Error(f"codebook {path}: ':' separates paths for the device; rename the file")
    paths = [path] + [other for other in _codebooks if other != path]
    device.set_window(*(-1 if n is None else n for n in (window, sinks, spare)), n_sequences)
    error = device.set_codebook(os.fsencode(":".join(paths)))
    if error:
        raise Error(error.decode())
    _codebooks[:] = paths
    return device.devices().index("CQ0")


def detach():
    """Caches that are made from now on are llama.cpp's own."""
    if _device is not None:
        _device.set_codebook(b"")
    _codebooks.clear()


def last_error():
    """What the device said when a call of llama.cpp failed; "" if nothing."""
    return "" if _device is None else _device.last_error().decode()


def _check_options(options):
    for name, wanted in _FLAGS.items():
        if name in options and options[name] not in wanted:
            raise Error(f"{name}: got {options[name]!r}, want {wanted[0]!r}: a coded cache needs it")
    for name in ("split_mode", "main_gpu", "tensor_split"):
        if name in options:
            raise Error(f"{name}: cqkv.Llama chooses it, so that the cache lies on the KV device")


def find_codebook(model_path, kv=1, learn=False):
    """The path of the codebook of `kv` bits a channel for a model, as `cqkv find` finds it: beside
    the model (NAME.cq-*.gguf for NAME.gguf), in ~/.cache/cqkv/codebooks, and among those of this
    package. With `learn` it is learned if there is none, in minutes, with progress on standard
    error."""
    _import_llama_cpp()  # the program needs its libraries
    flags = ["--learn"] if learn else []
    found = subprocess.run(
        [str(FOLDER / "cqkv"), "find", "-m", os.fspath(model_path), "--kv", str(kv), *flags],
        stdout=subprocess.PIPE, stderr=None if learn else subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        reason = (found.stderr or "").strip() or "cqkv find failed: see standard error"
        raise Error(reason.replace("add --learn", "pass learn=True")
                    .replace("--kv-codebook", "codebook=..."), "not found")
    return found.stdout.strip()


def Llama(model_path, codebook=None, kv=1, learn=False,  # noqa: N802: as llama_cpp's
          window=None, sinks=None, **options):
    """A `llama_cpp.Llama` whose key-value cache is coded; `options` are that class's.

    codebook       path of a file of `cqkv calibrate`; None: find_codebook(model_path, kv, learn).
    window, sinks  exact recent and first tokens; None: as the codebook says.

    Where the cache would not be coded, wholly, this is an Error with the reason.
    """
    _check_options(options)
    if codebook is None:
        codebook = find_codebook(model_path, kv, learn)
    number = attach(codebook, window, sinks)
    llama_cpp = _device.llama_cpp
    _device.report()  # of an earlier context
    try:
        llm = llama_cpp.Llama(
            model_path=os.fspath(model_path), split_mode=llama_cpp.LLAMA_SPLIT_MODE_NONE,
            main_gpu=number, **{"n_gpu_layers": 99, "flash_attn": True, **options})
    except ValueError as error:
        reason = last_error()
        raise (Error(f"{error}: {reason}", "unsupported") if reason else error) from error
    coded, line = _device.report()
    if coded != _SAID_ALL:
        llm.close()
        raise Error(line or "the cache is not coded: llama.cpp put no layer on the KV device",
                    "mismatch")
    return llm
