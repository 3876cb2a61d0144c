"""The KV device inside llama-cpp-python: loading it into the llama.cpp that package brings, telling
it codebooks, and making a `llama_cpp.Llama` whose cache is coded.

llama-cpp-python is imported on first use only. The device must be loaded into its copy of ggml: a
second one would have a registry of its own, and nothing would happen.
"""

import ctypes
import functools
import os
import pathlib
import subprocess
import threading
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p

from cqkv._build import GGML_VERSION, LLAMA_CPP_PYTHON
from cqkv._library import FOLDER, Error, integer, path_bytes

_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU
_SAID_ALL = 1
_NO_CODEBOOK = 3  # exit code of `cqkv find`
_lock = threading.RLock()  # what the device is told belongs to the process


def _import_llama_cpp():
    try:
        import llama_cpp
    except ImportError as error:
        raise Error("llama-cpp-python is not installed: pip install "
                    f"llama-cpp-python=={LLAMA_CPP_PYTHON}", "not found") from error
    return llama_cpp


def _ggml(stem):
    """A library of ggml, "libggml" or "libggml-base", that this process has loaded already."""
    found = {}  # by file, names of one file count once
    for line in pathlib.Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and os.path.basename(fields[5]).startswith(stem + ".so"):
            found[fields[3], fields[4]] = fields[5]
    if len(found) != 1:
        raise Error(f"this process has loaded {len(found)} copies of {stem} "
                    f"({', '.join(found.values()) or 'none'}), want exactly that of "
                    "llama-cpp-python: each copy has a list of devices of its own", "unsupported")
    path, = found.values()
    if path.endswith(" (deleted)"):
        raise Error(f"{path}: was replaced while this process uses it; start Python anew",
                    "unsupported")
    return ctypes.CDLL(path)


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

    def number(self):
        """Of the device among those that llama.cpp puts layers on."""
        every = [self._ggml.ggml_backend_dev_get(i)
                 for i in range(self._ggml.ggml_backend_dev_count())]
        names = [self._base.ggml_backend_dev_name(device).decode() for device in every
                 if self._base.ggml_backend_dev_type(device) == _GPU]
        return names.index("CQ0")

    def report(self):
        """(how much of the newest context is coded, the device's line about it), once."""
        line = c_char_p()
        return self._report(byref(line)), line.value.decode()


@functools.lru_cache(maxsize=None)
def _device():
    return _Device()


def _chosen(value, variable, default=-1):
    """A number that was given, or that of the environment, as for llama.cpp's programs."""
    if value is not None:
        return integer(value, variable[5:].lower(), 0)
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise Error(f"{variable}: got {text!r}, want a whole number")
    return int(text) if text else default


def attach(*codebooks, window=None, sinks=None, spare=None, n_sequences=None):
    """From now on the caches of these codebooks' models are coded, in every `llama_cpp.Llama` of
    this process that is made with

        n_gpu_layers=-1, flash_attn=True, split_mode=llama_cpp.LLAMA_SPLIT_MODE_NONE,
        main_gpu=cqkv.attach(...)

    as cqkv.Llama makes it. It replaces what was attached before; caches that exist already stay as
    they are. Once the device is loaded, any Llama with n_gpu_layers other than 0 may lie on it, and
    then needs flash_attn=True or a detach() before.

    codebooks    Paths of files of `cqkv calibrate`, of one model each.
    window, sinks, spare  Exact recent and first tokens, and rows beside them for taking text back;
                 None: the environment's CQKV_WINDOW, CQKV_SINKS, CQKV_SPARE, or as each codebook
                 says.
    n_sequences  That will share a cache; None: CQKV_SEQUENCES or 1.
    returns      The number of the device among those of llama.cpp, for main_gpu.

    Errors: cqkv.Error for codebooks that cannot be read, and where llama-cpp-python is missing, of
    another version than the tested one, or loaded twice; nothing changes then.
    """
    with _lock:
        device = _device()
        paths = [path_bytes(os.path.abspath(codebook)) for codebook in codebooks]
        for path in paths:
            if b":" in path:
                raise Error(f"codebook {os.fsdecode(path)}: ':' separates paths for the device; "
                            "rename the file")
        numbers = [_chosen(window, "CQKV_WINDOW"), _chosen(sinks, "CQKV_SINKS"),
                   _chosen(spare, "CQKV_SPARE"), _chosen(n_sequences, "CQKV_SEQUENCES", 1)]
        device.set_window(*numbers)
        error = device.set_codebook(b":".join(paths))
        if error:
            raise Error(error.decode(errors="replace"))
        return device.number()


def detach():
    """Caches that are made from now on are llama.cpp's own."""
    if _device.cache_info().currsize > 0:
        attach()


def last_error():
    """What the device said when a call of llama.cpp failed; "" if nothing."""
    return _device().last_error().decode(errors="replace")


def _check_options(options):
    wanted = {"flash_attn": (True,), "offload_kqv": (True,), "type_k": (None, 1),
              "type_v": (None, 1)}  # 1: GGML_TYPE_F16
    for name, values in wanted.items():
        if name in options and options[name] not in values:
            raise Error(f"{name}: got {options[name]!r}, want {values[0]!r}: a coded cache needs it")
    n_layers = options.get("n_gpu_layers", -1)
    if 0 <= n_layers < 99:
        raise Error(f"n_gpu_layers: got {n_layers!r}, want -1, all layers: the others' cache would "
                    "not be coded")
    for name in ("split_mode", "main_gpu", "tensor_split"):
        if name in options:
            raise Error(f"{name}: cqkv.Llama chooses it, so that the cache lies on the KV device")


def _find(arguments, shown):
    """Runs `cqkv find`; what it says of its work goes to standard error, or is returned."""
    return subprocess.run([str(FOLDER / "cqkv"), "find", *arguments], check=False,
                          stdout=subprocess.PIPE, stderr=None if shown else subprocess.PIPE)


def find_codebook(model_path, kv=1, learn=False):
    """The path of the codebook of `kv` bits a channel for a model, as `cqkv find` finds it: beside
    the model, in ~/.cache/cqkv/codebooks, and among those of this package. With `learn` it is
    learned if there is none, in minutes, with progress on standard error (of models of the
    architectures llama, qwen2, qwen3 and gemma3).

    Errors: cqkv.Error, "not found" if there is none.
    """
    _device()  # the program works with the same llama.cpp: is it the tested one?
    arguments = [b"-m", path_bytes(model_path), b"--kv", str(kv).encode()]
    found = _find(arguments, shown=False)
    if found.returncode == _NO_CODEBOOK and learn:
        found = _find([*arguments, b"--learn"], shown=True)
        if found.returncode != 0:
            raise Error(f"no codebook of {model_path} was learned: see standard error", "internal")
    if found.returncode != 0:
        lines = found.stderr.decode(errors="replace").strip().split("\n")
        reason = [line for line in lines if "try 'cqkv find --help'" not in line][-1]
        if found.returncode == _NO_CODEBOOK:
            raise Error(reason + " (in Python: learn=True, kv=..., codebook=...)", "not found")
        raise Error(reason)
    return os.fsdecode(found.stdout.rstrip(b"\n"))


def Llama(model_path, codebook=None, kv=1, learn=False,  # noqa: N802: as llama_cpp's
          window=None, sinks=None, **options):
    """A `llama_cpp.Llama` whose key-value cache is coded. A function, not a class.

    codebook       Path of a file of `cqkv calibrate`; None: find_codebook(model_path, kv, learn).
    window, sinks  Exact recent and first tokens; None: as for attach(), which this calls.
    options        Of `llama_cpp.Llama`, but for those that choose devices. A coded cache needs
                   flash attention, all layers on the device, and no other type of cache.

    Errors: cqkv.Error, with the reason, where the cache would not be coded, wholly.
    """
    _check_options(options)
    with _lock:
        if codebook is None:
            codebook = find_codebook(model_path, kv, learn)
        number = attach(codebook, window=window, sinks=sinks)
        device = _device()
        device.report()  # of an earlier context
        try:
            llm = device.llama_cpp.Llama(
                model_path=os.fspath(model_path), main_gpu=number,
                split_mode=device.llama_cpp.LLAMA_SPLIT_MODE_NONE,
                **{"n_gpu_layers": -1, "flash_attn": True, **options})
        except ValueError as error:
            reason = last_error()
            raise (Error(f"{error}: {reason}", "unsupported") if reason else error) from error
        coded, line = device.report()
        if coded != _SAID_ALL:
            llm.close()
            raise Error(line or "the cache is not coded: llama.cpp put no layer on the KV device",
                        "mismatch")
        return llm
