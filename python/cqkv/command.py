"""The command `cqkv`: starts the program that comes with the package."""

import importlib.metadata
import os
import sys

from cqkv._build import LLAMA_CPP_PYTHON
from cqkv._library import FOLDER


def main():
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != LLAMA_CPP_PYTHON:
        sys.exit(f"cqkv: works with the libraries of llama-cpp-python {LLAMA_CPP_PYTHON}, this "
                 f"environment has {version}: pip install llama-cpp-python=={LLAMA_CPP_PYTHON}")
    program = str(FOLDER / "cqkv")
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
