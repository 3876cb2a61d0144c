"""Finds includes that point upwards: a folder of src/ may use those below it and nothing else, and
the folders of the library know neither ggml nor llama.cpp.

    include_direction.py SRC

Names each wrong include with its place, and fails. A folder without a place in the order fails too.
"""

import pathlib
import re
import sys

# From the ground up. Folders of one floor do not know each other.
FLOORS = (("core",), ("isa", "gguf"), ("kernels",), ("rope", "codebook"),
          ("codec", "codebook_file"), ("attention",), ("cache",), ("capi", "graph", "llama"),
          ("model_pass",), ("calibration", "eval", "device"))
HOST_FOLDERS = ("graph", "llama", "model_pass", "calibration", "eval", "device")  # of ggml or llama.cpp
SUFFIXES = (".h", ".cpp")
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.M)
HOST = re.compile(r"^(ggml|gguf|llama)")


def floors():
    return {folder: number for number, names in enumerate(FLOORS) for folder in names}


def wrong_includes(folder, text):
    """(line, what is included) of every include that a file of the folder may not have."""
    floor_of = floors()
    for match in INCLUDE.finditer(text):
        quoted, name = match.group(1) == '"', match.group(2)
        target = name.split("/")[0]
        line = text.count("\n", 0, match.start(2)) + 1
        if quoted and "/" in name and target != "cqkv":
            if target != folder and floor_of.get(target, len(FLOORS)) >= floor_of[folder]:
                yield line, name
        elif HOST.match(name) and folder not in HOST_FOLDERS:
            yield line, name


def main(root):
    known = floors()
    n_wrong = 0
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name not in known:
            print(f"{folder.name}: has no place in the order of folders; give it one in FLOORS")
            n_wrong += 1
            continue
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES:
                for line, name in wrong_includes(folder.name, path.read_text(encoding="utf-8")):
                    print(f"{path.relative_to(root)}:{line}: {folder.name} may not include {name}")
                    n_wrong += 1
    return 1 if n_wrong > 0 else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
