"""That inl_headers.py finds what it should, and nothing else. The compiler is the first argument."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

import inl_headers

COMPILER = "c++"


class InlHeadersTest(unittest.TestCase):
    def check(self, processor="none", **headers):
        """The exit code and the text for headers by name, without -inl.h."""
        with tempfile.TemporaryDirectory() as folder, io.StringIO() as text:
            for name, source in headers.items():
                (pathlib.Path(folder) / f"{name}-inl.h").write_text(source)
            with contextlib.redirect_stdout(text):
                code = inl_headers.main(COMPILER, processor, folder)
            return code, text.getvalue()

    def test_a_header_that_needs_its_includer_is_found(self):
        below = "#pragma once\nconstexpr int kLanes = 4;\n"
        above = "#pragma once\ninline int twice() { return 2 * kLanes; }\n"
        code, text = self.check(below=below, above=above)
        self.assertEqual(code, 1)
        self.assertIn("above-inl.h does not compile alone at level scalar", text)
        self.assertNotIn("below-inl.h does not", text)
        self.assertEqual(self.check(below=below, above='#include "below-inl.h"\n' + above), (0, ""))

    def test_names_say_the_level(self):
        self.assertEqual(inl_headers.levels_of("avx2_rows-inl.h"), ["avx2"])
        self.assertEqual(inl_headers.levels_of("integer_vbmi-inl.h"), ["vbmi"])
        self.assertEqual(inl_headers.levels_of("decode-inl.h"), ["scalar"])
        self.assertIn("neon", inl_headers.levels_of("simd-inl.h"))

    def test_headers_of_other_processors_are_left_out(self):
        self.assertEqual(self.check("x86_64", fine="", neon_rows="#error not here\n")[0], 0)
        self.assertEqual(self.check("aarch64", fine="", neon_rows="#error here\n")[0], 1)

    def test_nothing_to_look_at_is_an_error(self):
        self.assertEqual(self.check()[0], 1)


if __name__ == "__main__":
    COMPILER = sys.argv.pop(1)
    unittest.main()
