"""type_names.py on small sources: what counts as two definitions of one type, and what does not."""

import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "type_names.py")


class TypeNamesTest(unittest.TestCase):
    def check(self, *sources):
        with tempfile.TemporaryDirectory() as folder:
            for i, source in enumerate(sources):
                with open(os.path.join(folder, f"file_{i}.h"), "w") as out:
                    out.write(source)
            return subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)

    def test_two_definitions_are_named_with_their_places(self):
        for one, two in (("struct X {};", "class X { int x; };"),
                         ("struct X : Y {};", "struct X final : Z {};"),
                         ("enum class X : int { a = 1 };", "using X = int;"),
                         ("template <typename T = int> struct X {};", "class [[nodiscard]] X {};"),
                         ("union X {};", "void f() { int i = 0; }\nstruct X\n{};")):
            result = self.check("namespace a {\nnamespace b {\n" + one + "\n}\n}\n",
                                "namespace a::b {\n" + two + "}\n")
            self.assertEqual(result.returncode, 1, one + two)
            self.assertIn("a::b::X is defined 2 times", result.stdout)
            self.assertIn("file_0.h:3", result.stdout)
            self.assertIn("file_1.h:", result.stdout)

    def test_what_is_no_second_definition(self):
        for one, two in (("struct X {};", "struct X;"),
                         ("struct X {};", "struct X f() { return {}; }"),
                         ("struct X {};", "struct X x = {1};"),
                         ("template <class T> struct X {};", "template <> struct X<int> {};"),
                         ("struct X {};", "namespace {\nstruct X {};\n}"),
                         ("struct X {};", "namespace c { struct X {}; }"),
                         ("struct X {};", "struct Y { struct X {}; };"),
                         ("struct X {};", "void f() { struct X {}; }"),
                         ("struct X {};", "// struct X {};\n/* struct X {}; */"),
                         ("struct X {};", 'const char* s = "struct X {"; char c = \'{\';'),
                         ("struct X {};", "#define F struct X { \\\n};"),
                         ("struct X {};", "using b::X;")):
            result = self.check("namespace a {\n" + one + "}\n", "namespace a {\n" + two + "}\n")
            self.assertEqual(result.returncode, 0, two + result.stdout)

    def test_nothing_to_look_at_is_an_error(self):
        self.assertEqual(self.check().returncode, 1)


if __name__ == "__main__":
    unittest.main()
