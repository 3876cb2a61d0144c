"""`cqkv bench attention` on small shapes: its results agree, its JSON is whole, wrong use is
told. How fast anything is, is not tested."""

import json
import os
import subprocess
import tempfile
import unittest

CQKV = os.environ["CQKV_PROGRAM"]
KEYS = {"impl", "type", "head_dim", "gqa", "n_kv_heads", "n_tokens", "n_seq", "unified",
        "n_queries", "threads", "ns_per_token_head", "ns_per_token_head_median", "us_per_query",
        "us_per_query_median", "repetitions", "cache_bytes", "bytes_per_second",
        "bandwidth_share"}


def run(*arguments):
    return subprocess.run([CQKV, "bench", *arguments], capture_output=True, text=True, timeout=120)


def quick(*arguments):
    return run("attention", "--seconds", "0", "--tokens", "100", "-t", "1", *arguments)


class BenchTest(unittest.TestCase):
    def rows(self, *arguments):
        result = quick("--check", "--json", "-", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)["rows"]

    def expect_usage(self, result, *words):
        self.assertEqual(result.returncode, 2, result.stderr + result.stdout)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_help(self):
        self.assertIn("attention", run("--help").stdout)
        self.assertIn("cqkv bench attention", run("attention", "--help").stdout)

    def test_every_implementation_has_a_row(self):
        rows = self.rows("--codec", "8c8b", "--codec", "4c4b")
        self.assertEqual([(row["impl"], row["type"]) for row in rows],
                         [("cqkv", "8c8b"), ("cqkv", "4c4b"), ("ggml", "f16"), ("ggml", "q8_0"),
                          ("ggml", "q4_0")])
        for row in rows:
            self.assertLessEqual(KEYS, row.keys())
            self.assertGreater(row["ns_per_token_head"], 0)
            self.assertLessEqual(row["ns_per_token_head"], row["ns_per_token_head_median"])
            self.assertGreaterEqual(row["repetitions"], 5)
            self.assertIn("difference_ggml_f32", row)
            self.assertEqual("difference_floats" in row, row["impl"] == "cqkv")

    def test_cache_bytes(self):
        # Keys and values of 2 KV heads of 128: 100 tokens, in codes two blocks of 64.
        sizes = {row["type"]: row["cache_bytes"] for row in self.rows("--codec", "8c8b")}
        self.assertEqual(sizes, {"8c8b": 2 * 128 * 2 * 16, "f16": 2 * 100 * 2 * 128 * 2,
                                 "q8_0": 2 * 100 * 2 * 4 * 34, "q4_0": 2 * 100 * 2 * 4 * 18})

    def test_shapes(self):
        # The comparison in the program is the test: a wrong mask or layout is far off.
        for shape in (["--head-dim", "64", "--gqa", "3", "--kv-heads", "1"], ["--queries", "100"],
                      ["--seqs", "1,3"], ["--seqs", "3", "--unified", "--queries", "5"],
                      ["--tokens", "1,700"], ["--codec", "1c8b,8c10b"], ["--threads", "1,2"]):
            with self.subTest(shape=shape):
                self.assertTrue(self.rows("--codec", "2c8b", "--type", "f16", *shape))

    def test_file_and_table(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "figures.json")
            result = quick("--codec", "8c8b", "--type", "f16", "--json", path)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("8c8b", result.stdout)
            with open(path, encoding="utf-8") as file:
                figures = json.load(file)
        self.assertEqual(figures["memory"][0]["threads"], 1)
        self.assertEqual(len(figures["rows"]), 2)
        self.assertNotIn("difference_ggml_f32", figures["rows"][0])

    def test_wrong_use(self):
        self.expect_usage(run("nothing"))
        self.expect_usage(quick("--codec", "3c4b"), "cqkv bench attention: ", "3c4b", "8c8b")
        self.expect_usage(quick("--codec", "exact"), "exact")
        self.expect_usage(quick("--type", "q5_0"), "q5_0", "q8_0")
        self.expect_usage(quick("--queries", "101"), "101", "100")
        self.expect_usage(quick("--tokens", "100000", "--seqs", "1000"), "100000000", "16777216")
        self.expect_usage(quick("--head-dim", "48", "--type", "q8_0"), "48", "32")
        self.expect_usage(quick("--threads", "0"), "0")


if __name__ == "__main__":
    unittest.main()
