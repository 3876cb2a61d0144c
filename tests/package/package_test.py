"""The installed library: into an empty prefix, the prefix moved, the examples built against it by
find_package and by pkg-config and run; what it exports; public headers compiled alone."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

BUILD, SOURCE, CMAKE = os.environ["CQKV_BUILD"], os.environ["CQKV_SOURCE"], os.environ["CMAKE"]
CC, CXX = os.environ["CC"], os.environ["CXX"]


def run(*command, **variables):
    result = subprocess.run(command, capture_output=True, text=True, timeout=300,
                            env={**os.environ, **variables})
    if result.returncode != 0:
        raise AssertionError(f"{command}: {result.stdout}{result.stderr}")
    return result.stdout


class PackageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        root = pathlib.Path(cls.folder.name)
        run(CMAKE, "--install", BUILD, "--prefix", str(root / "first"))
        shutil.move(root / "first", root / "moved")
        cls.root, cls.prefix = root, root / "moved"
        cls.libraries = next(cls.prefix.rglob("libcqkv.so")).parent

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_examples_by_find_package(self):
        build = self.root / "examples"
        run(CMAKE, "-S", f"{SOURCE}/examples", "-B", str(build),
            f"-DCMAKE_PREFIX_PATH={self.prefix}", f"-DCMAKE_C_COMPILER={CC}",
            f"-DCMAKE_CXX_COMPILER={CXX}")
        run(CMAKE, "--build", str(build))
        codebook = str(self.root / "codebook.gguf")
        self.expect_attention(run(str(build / "attend"), codebook))
        self.assertRegex(run(str(build / "codes"), codebook),
                         r"layer 0: keys 8c8b, 8 codes a token, error 0\.\d+")

    def test_the_c_example_by_pkg_config(self):
        flags = run("pkg-config", "--cflags", "--libs", "cqkv",
                    PKG_CONFIG_PATH=str(self.libraries / "pkgconfig")).split()
        program = str(self.root / "attend")
        run(CC, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic",
            f"{SOURCE}/examples/c/attend.c", "-o", program, *flags, "-lm")
        self.expect_attention(run(program, str(self.root / "by-pkg-config.gguf"),
                                  LD_LIBRARY_PATH=str(self.libraries)))

    def expect_attention(self, text):
        self.assertRegex(text, r"learned 2 KV heads of 32 channels: \d+\.\d % of the variance lost")
        coded, plain = re.search(r"256 tokens in (\d+) bytes, 16-bit floats take (\d+)", text).groups()
        self.assertLess(int(coded), int(plain) / 2)

    # What the header declares leaves the library, and nothing else.
    def test_exported_symbols(self):
        declared = set(re.findall(r"^CQKV_API [^;(]*?(\w+)\(",
                                  (self.prefix / "include" / "cqkv.h").read_text(), re.M))
        self.assertIn("cqkv_cache_attend", declared)
        symbols = run("nm", "-D", "--defined-only", str(self.libraries / "libcqkv.so"))
        self.assertEqual({line.split()[-1] for line in symbols.splitlines()}, declared)

    def test_the_name_of_the_shared_library(self):
        self.assertIn("libcqkv.so.0", run("readelf", "-d", str(self.libraries / "libcqkv.so")))

    def test_public_headers_compile_alone(self):
        include = self.prefix / "include"
        headers = sorted(include.rglob("*.h"))
        self.assertGreater(len(headers), 5)
        for header in headers:
            name = str(header.relative_to(include))
            run("sh", "-c", f"echo '#include <{name}>' | {CXX} -std=c++20 -Wall -Wextra -Werror "
                f"-fsyntax-only -I {include} -x c++ -")
        run("sh", "-c", f"echo '#include <cqkv.h>' | {CC} -std=c99 -Wall -Wextra -Werror -pedantic "
            f"-fsyntax-only -I {include} -x c -")


if __name__ == "__main__":
    unittest.main()
