"""`cqkv bench attention`, `encode` and `model` on small shapes: results agree, JSON is whole,
wrong use is told. How fast anything is, is not tested."""

import json
import os
import subprocess
import tempfile
import unittest

CQKV = os.environ["CQKV_PROGRAM"]
KEYS = {"impl", "type", "head_dim", "gqa", "n_kv_heads", "n_layers", "n_tokens", "n_seq", "unified",
        "first_position", "rope_base", "n_queries", "threads", "ns_per_token_head", "ns_per_token_head_median",
        "us_per_query", "us_per_query_median", "repetitions", "cache_bytes", "bytes_per_second",
        "bandwidth_share"}
ENCODE_KEYS = {"codec", "head_dim", "n_kv_heads", "n_rows", "ns_per_row", "ns_per_row_median",
               "us_per_token_head", "us_per_token_head_median", "multiply_adds_per_second",
               "repetitions"}
MODEL = os.environ.get("CQKV_TEST_MODEL", "")


def run(*arguments, **variables):
    return subprocess.run([CQKV, "bench", *arguments], capture_output=True, text=True, timeout=120,
                          env={**os.environ, **variables})


def quick(*arguments):
    return run("attention", "--seconds", "0", "--tokens", "100", "-t", "1", *arguments)


class BenchCase(unittest.TestCase):
    def expect_usage(self, result, *words):
        self.assertEqual(result.returncode, 2, result.stderr + result.stdout)
        for word in words:
            self.assertIn(word, result.stderr)


class BenchAttentionTest(BenchCase):
    def rows(self, *arguments):
        result = quick("--check", "--json", "-", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        out = json.loads(result.stdout)
        self.assertLessEqual({"tool", "ggml", "instruction_set", "cpu", "hardware_threads"},
                             out.keys())
        self.assertGreaterEqual(out["hardware_threads"], 1)
        return out["rows"]

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
                      ["--first-position", "13"],
                      ["--tokens", "1,700"], ["--codec", "1c8b,8c10b"], ["--threads", "1,2"]):
            with self.subTest(shape=shape):
                self.assertTrue(self.rows("--codec", "2c8b", "--type", "f16", *shape))

    def test_rope_base(self):
        flag = ["--type", "f16", "--rope-base", "10000"]
        self.assertEqual({row["rope_base"] for row in self.rows("--codec", "8c8b", *flag)}, {10000})
        self.assertIn("rotary base 10000,", quick("--codec", "8c8b", *flag).stdout)

    def test_sums_over_keys(self):
        rows = self.rows("--codec", "8c8b,1c8b", "--key-heads", "0,1,2", "--type", "f16")
        self.assertEqual([(row["type"], row.get("key_heads")) for row in rows],
                         [("8c8b", 0), ("8c8b", 1), ("8c8b", 2), ("1c8b", 0), ("1c8b", 1),
                          ("1c8b", 2), ("f16", None)])
        self.expect_usage(quick("--key-heads", "3"), "--key-heads", "got 3", "2 KV heads")
        self.assertIn("8c8b+2", quick("--codec", "8c8b", "--key-heads", "2", "--type",
                                      "f16").stdout)

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

    def test_codebooks_run_layer_by_layer(self):
        with tempfile.TemporaryDirectory() as folder:
            def make(name, n_layers, config, n_kv_heads, head_dim):
                path = os.path.join(folder, name)
                subprocess.run([os.environ["CQKV_MAKE_CODEBOOK"], path, n_layers, config,
                                n_kv_heads, head_dim, "llama"], check=True)
                return path
            one, other = make("one.gguf", "3", "8c8b", "2", "32"), make("2.gguf", "2", "4c4b", "2", "32")
            result = quick("--kv-codebook", one, other, "--gqa", "3", "--type", "f16", "--json", "-")
            self.assertEqual(result.returncode, 0, result.stderr)
            rows = json.loads(result.stdout)["rows"]
            self.assertEqual([(row["type"], row["n_layers"], row["head_dim"]) for row in rows],
                             [("one", 3, 32), ("2", 2, 32), ("f16", 1, 32)])
            self.assertEqual(rows[0]["cache_bytes"], 3 * 2 * 2 * 4 * 128)  # 100 cells: two blocks
            # The table compares a layer with a layer.
            cells = [line.split() for line in
                     quick("--kv-codebook", one, "--type", "f16").stdout.splitlines()[-2:]]
            fastest, speedup = float(cells[0][7]), float(cells[0][9])
            self.assertAlmostEqual(speedup, float(cells[1][7]) / fastest, delta=0.02 * speedup + 0.01)
            self.expect_usage(quick("--kv-codebook", one, "--check"), "--check")
            result = quick("--kv-codebook", one, make("wide.gguf", "1", "8c8b", "2", "64"))
            self.assertEqual(result.returncode, 1)
            self.assertIn("wide.gguf: has 2 KV heads of 64, the first codebook has 2 of 32",
                          result.stderr)

    def test_wrong_use(self):
        self.expect_usage(run("nothing"))
        self.expect_usage(quick("--codec", "3c4b"), "cqkv bench attention: ", "3c4b", "8c8b")
        self.expect_usage(quick("--codec", "exact"), "exact")
        self.expect_usage(quick("--type", "q5_0"), "q5_0", "q8_0")
        self.expect_usage(quick("--queries", "101"), "101", "100")
        self.expect_usage(quick("--tokens", "100000", "--seqs", "1000"), "100000000", "16777216")
        self.expect_usage(quick("--head-dim", "48", "--type", "q8_0"), "48", "32")
        self.expect_usage(quick("--threads", "0"), "0")


class BenchEncodeTest(BenchCase):
    def encode(self, *arguments):
        return run("encode", "--seconds", "0", *arguments)

    def test_every_codec_and_number_of_rows(self):
        result = self.encode("--codec", "8c8b,4c4b", "--rows", "1,100", "--kv-heads", "3",
                             "--head-dim", "32", "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)["rows"]
        self.assertEqual([(row["n_rows"], row["codec"]) for row in rows],
                         [(1, "8c8b"), (1, "4c4b"), (100, "8c8b"), (100, "4c4b")])
        for row in rows:
            self.assertEqual(row.keys(), ENCODE_KEYS)
            self.assertLessEqual(0, row["ns_per_row"])
            self.assertLessEqual(row["ns_per_row"], row["ns_per_row_median"])
            self.assertAlmostEqual(row["us_per_token_head"], 2 * row["ns_per_row"] / 3 / 1000)
            n_centroids = 256 if row["codec"] == "8c8b" else 16
            self.assertAlmostEqual(row["multiply_adds_per_second"] * row["ns_per_row"] * 1e-9,
                                   3 * 32 * n_centroids, delta=1e-3)
            self.assertGreaterEqual(row["repetitions"], 5)

    def test_instruction_set(self):
        result = self.encode("--isa", "scalar", "--head-dim", "32")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("scalar", result.stdout)
        self.assertIn("8c8b", result.stdout)

    def test_wrong_use(self):
        self.expect_usage(self.encode("--isa", "mmx"), "cqkv bench encode: ", "mmx", "scalar")
        self.expect_usage(self.encode("--codec", "8c13b"), "8c13b")
        self.expect_usage(self.encode("--codec", "exact"), "exact")
        self.expect_usage(self.encode("--codec", "16c8b", "--head-dim", "40"), "40", "16")
        self.expect_usage(self.encode("--rows", "0"), "0")


@unittest.skipUnless(MODEL, "without CQKV_TEST_MODEL")
class BenchModelTest(BenchCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.codebook = os.path.join(folder.name, "coarse.gguf")
        subprocess.run([os.environ["CQKV_MAKE_CODEBOOK"], self.codebook, "30", "8c8b", "3", "64",
                        "llama"], check=True)

    def model(self, *arguments, prompt="32", gen="4", **variables):
        # One thread: more would wait for each other actively, long on a busy machine.
        return run("model", "-m", MODEL, "--kv-codebook", self.codebook, "--depths", "0",
                   "--prompt", prompt, "--gen", gen, "--repeat", "1", "-t", "1", *arguments,
                   **variables)

    def test_own_and_coded_cache(self):
        # The user's own variables for the device must not bring it into llama.cpp's runs.
        result = self.model("--type", "f16", "--json", "-",
                            GGML_BACKEND_PATH=os.path.join(os.path.dirname(CQKV),
                                                           "libggml-cq.so"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("depth 0", result.stderr)
        rows = json.loads(result.stdout)["rows"]
        self.assertEqual([(row["impl"], row["type"], row["test"]) for row in rows],
                         [("ggml", "f16", "prompt"), ("ggml", "f16", "generation"),
                          ("cqkv", "coarse", "prompt"), ("cqkv", "coarse", "generation")])
        for row in rows:
            self.assertEqual(row["n_tokens"], 32 if row["test"] == "prompt" else 4)
            self.assertEqual(row["depth"], 0)
            self.assertEqual(row["samples"], [row["tokens_per_second"]])
            self.assertEqual(row["tokens_per_second"], row["tokens_per_second_best"])
            self.assertGreater(row["ratio_f16"], 0)
        self.assertEqual(rows[0]["ratio_f16"], 1)
        self.assertEqual(rows[2]["codebook"], self.codebook)

    def test_table_without_base_and_prompt(self):
        result = self.model("--type", "q8_0", "-q", prompt="0")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        lines = [line.split() for line in result.stdout.splitlines()[-2:]]
        self.assertEqual([line[:6] for line in lines],
                         [["0", "1", "q8_0", "-", "-", "-"], ["0", "1", "coarse", "-", "-", "-"]])
        self.assertEqual([line[-1] for line in lines], ["-", "-"])

    def test_failures(self):
        self.expect_usage(self.model(prompt="0", gen="0"), "cqkv bench model: ", "--gen")
        self.expect_usage(self.model("--type", "q5_0"), "q5_0", "q8_0")
        missing = run("model", "-m", MODEL, "--kv-codebook", "/missing.gguf")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("/missing.gguf", missing.stderr)

    def test_last_lines_of_llama_bench(self):
        # A device that cannot be loaded: llama-bench says that it has no CQ0.
        result = self.model("--type", "f16", CQKV_DEVICE=self.codebook)
        self.assertEqual(result.returncode, 1, result.stdout)
        for words in ("llama-bench", "got exit code 1, want 0", "CQ0"):
            self.assertIn(words, result.stderr)


if __name__ == "__main__":
    unittest.main()
