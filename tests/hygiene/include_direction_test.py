"""That include_direction.py finds what it should, and nothing else."""

import pathlib
import tempfile
import unittest

import include_direction


class IncludeDirectionTest(unittest.TestCase):
    def wrong(self, folder, text):
        return list(include_direction.wrong_includes(folder, text))

    def test_downwards_and_its_own_folder_are_right(self):
        self.assertEqual(self.wrong("cache", '#include "cache/record.h"\n#include "core/half.h"\n'
                                    '#include "cqkv/status.h"\n#include <vector>\n'), [])

    def test_upwards_and_sideways_are_wrong(self):
        self.assertEqual(self.wrong("codec", '#include <vector>\n\n#include "cache/record.h"\n'),
                         [(3, "cache/record.h")])
        self.assertEqual(self.wrong("rope", '#include "codebook/learn.h"\n'),
                         [(1, "codebook/learn.h")])
        self.assertEqual(self.wrong("core", '  #  include "nowhere/a.h"\n'), [(1, "nowhere/a.h")])

    def test_the_library_does_not_know_its_hosts(self):
        self.assertEqual(self.wrong("cache", "#include <ggml-impl.h>\n"), [(1, "ggml-impl.h")])
        self.assertEqual(self.wrong("cache", '#include "llama.h"\n'), [(1, "llama.h")])
        self.assertEqual(self.wrong("device", "#include <ggml-impl.h>\n"), [])

    def test_a_folder_without_a_place_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "core").mkdir()
            self.assertEqual(include_direction.main(pathlib.Path(folder)), 0)
            (pathlib.Path(folder) / "attic").mkdir()
            self.assertEqual(include_direction.main(pathlib.Path(folder)), 1)


if __name__ == "__main__":
    unittest.main()
