"""The command `cqkv`: starts the program that comes with the package."""

import importlib.util
import os
import sys

from cqkv._build import LLAMA_CPP_PYTHON
from cqkv._library import FOLDER


def main():
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("cqkv: needs llama.cpp's libraries: pip install "
                 f"llama-cpp-python=={LLAMA_CPP_PYTHON}")
    program = str(FOLDER / "cqkv")
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
