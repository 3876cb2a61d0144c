"""What a user sees who asks llama.cpp's programs for something that the device cannot
serve: no context, no abort, and a message with what was found and what to do."""

import os
import subprocess
import tempfile
import unittest

CQKV = os.environ["CQKV_PROGRAM"]
MAKE_CODEBOOK = os.environ["CQKV_MAKE_CODEBOOK"]
MODEL = os.environ["CQKV_TEST_MODEL"]
BIN = os.path.dirname(CQKV)


class RefusalTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def codebook(self, *arguments, n_layers=30, heads=3):
        path = os.path.join(self.folder.name, "book.gguf")
        subprocess.run([MAKE_CODEBOOK, path, str(n_layers), "8c8b", str(heads), "64", "llama",
                        *arguments], check=True)
        return path

    def run_completion(self, codebook, *arguments):
        environment = dict(os.environ, CQKV_CODEBOOK=codebook,
                           GGML_BACKEND_PATH=os.path.join(BIN, "libggml-cq.so"))
        return subprocess.run(
            [os.path.join(BIN, "llama-completion"), "-m", MODEL, "-dev", "CQ0", "-ngl", "99",
             "-c", "256", "-t", "2", "-p", "Hello", "-n", "2", "-no-cnv",
             *arguments], capture_output=True, text=True, errors="replace", timeout=300,
            env=environment, stdin=subprocess.DEVNULL)

    def assert_refused(self, result, *texts):
        output = result.stdout + result.stderr
        self.assertGreater(result.returncode, 0, "ended by a signal or with success:\n" + output)
        for text in texts:
            self.assertIn(text, output)

    def test_good_codebook_runs(self):
        result = self.run_completion(self.codebook(), "-fa", "on")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_flash_attention_off(self):
        result = self.run_completion(self.codebook(), "-fa", "off")
        self.assert_refused(result, "run with -fa on", "failed to allocate compute")

    def test_quantized_cache_type(self):
        result = self.run_completion(self.codebook(), "-ctk", "q8_0", "-ctv", "q8_0")
        self.assert_refused(result, "got q8_0, want f16", "leave out --cache-type-k")

    def test_broken_codebook(self):
        path = self.codebook()
        with open(path, "r+b") as file:
            file.truncate(1000)
        result = self.run_completion(path)
        self.assert_refused(result, path)

    def test_codebook_of_another_model_of_the_same_shape(self):
        result = self.run_completion(self.codebook("12345"))
        self.assert_refused(result, "was learned on model 'another model'",
                            "blk.0.attn_norm.weight", "cqkv calibrate")

    def test_codebook_of_another_shape_runs_as_stock(self):
        result = self.run_completion(self.codebook(heads=4))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("no codebook fits this model's cache: layer 0 has 192", result.stdout + result.stderr)

    def test_cqkv_run_refuses_before_it_starts(self):
        result = subprocess.run([CQKV, "run", "-m", MODEL, "--kv-codebook", self.codebook("12345"),
                                 "--", "-n", "1"], capture_output=True, text=True, timeout=120)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("'another model'", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
