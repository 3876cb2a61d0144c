"""Compiles every *-inl.h of src/ alone: a header that needs what its includer happened to include or
define before is found.

    inl_headers.py COMPILER PROCESSOR SRC...

A header whose name has a level in it (avx2_rows-inl.h) is compiled with the flags of that level, if
the processor (CMake's name) is of that kind. All others are for every level; they are compiled at the
scalar one, whose vectors include the least. The other folders are further ones to include from.
"""

import pathlib
import re
import subprocess
import sys

X86 = re.compile("x86_64|amd64", re.I)
ARM = re.compile("aarch64|arm64", re.I)
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# Of each word in names of headers, the processors and the flags.
LEVELS = {
    "scalar": (re.compile(""), ['-DCQKV_SIMD="kernels/simd_scalar-inl.h"']),
    "avx2": (X86, AVX2),
    "avx512": (X86, AVX512),
    "vbmi": (X86, [*AVX512, "-mavx512vbmi", "-mavx512vnni"]),
    "neon": (ARM, []),
}


def levels_of(name):
    """The levels that a header is compiled at."""
    if name == "simd-inl.h":  # it chooses by the flags
        return list(LEVELS)
    words = name.removesuffix("-inl.h").split("_")
    return [level for level in LEVELS if level in words] or ["scalar"]


def complaint(compiler, flags, folders, header):
    """What the compiler says of a file that has nothing but the header, or None if it takes it."""
    command = [compiler, "-std=c++20", "-fsyntax-only", *flags, *(f"-I{path}" for path in folders),
               "-x", "c++", "-"]
    result = subprocess.run(command, input=f'#include "{header}"\n', capture_output=True, text=True)
    return None if result.returncode == 0 else result.stderr


def main(compiler, processor, root, *others):
    n_compiled = n_wrong = 0
    for path in sorted(pathlib.Path(root).rglob("*-inl.h")):
        header = path.relative_to(root).as_posix()
        for level in levels_of(path.name):
            processors, flags = LEVELS[level]
            if not processors.search(processor):
                continue
            n_compiled += 1
            said = complaint(compiler, flags, (root, *others), header)
            if said is not None:
                print(f"{header} does not compile alone at level {level}; include what it needs:\n"
                      f"{said}")
                n_wrong += 1
    if n_compiled == 0:
        print(f"no *-inl.h found in {root}")
    return 1 if n_wrong > 0 or n_compiled == 0 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
