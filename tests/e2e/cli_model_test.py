"""The command line of cqkv on a real model (SmolLM2-135M): perplexity against
llama-perplexity, the device's uncoded mode, sizes, errors of texts, and Ctrl-C."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

CQKV = os.environ["CQKV_PROGRAM"]
MAKE_CODEBOOK = os.environ["CQKV_MAKE_CODEBOOK"]
MODEL = os.environ["CQKV_TEST_MODEL"]
DATA = os.environ["CQKV_DATA"]
LLAMA_PERPLEXITY = os.path.join(os.path.dirname(CQKV), "llama-perplexity")
KEYS = ["ppl_base", "ppl", "ratio", "ratio_se", "kld_mean", "kld_median", "kld_p99", "kld_p999", "top1", "bits_codes",
        "bits_all_in", "cache_bytes", "cache_bytes_f16", "n_scored", "name", "path", "ppl_se"]
N_CHANNELS = 30 * 2 * 192  # of one token of SmolLM2-135M


def run(*arguments):
    return subprocess.run([CQKV, *arguments], capture_output=True, text=True, timeout=900)


class CliModelTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.text = os.path.join(self.folder.name, "text.txt")
        with open(os.path.join(DATA, "wikitext2-test.txt"), "rb") as whole:
            data = whole.read(6000)
        with open(self.text, "wb") as out:
            out.write(data)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def perplexity(self, *arguments):
        figures = self.path("figures.json")
        result = run("perplexity", "-m", MODEL, "-f", self.text, "--json", figures, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(figures) as read:
            return json.load(read), result

    def test_same_digits_as_llama_perplexity(self):
        ours, _ = self.perplexity("-c", "256", "--chunks", "2", "-b", "256")
        theirs = subprocess.run([LLAMA_PERPLEXITY, "-m", MODEL, "-f", self.text, "-c", "256",
                                 "--chunks", "2", "-b", "256", "-fa", "on"],
                                capture_output=True, text=True, timeout=900)
        found = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", theirs.stdout + theirs.stderr)
        self.assertIsNotNone(found, theirs.stderr[-2000:])
        # The printed digits; half a unit for their rounding and 1e-6 for float sums of both
        # (22.823249 and 22.823251 print differently).
        self.assertAlmostEqual(ours["ppl_base"], float(found.group(1)), delta=0.5e-4 + 2e-6)
        self.assertAlmostEqual(ours["ppl_base_se"], float(found.group(2)), delta=0.5e-5 + 2e-6)

    # SmolLM2's comes with cqkv, for any file of its weights, under any name; a learned one goes first.
    def test_the_codebook_is_found(self):
        elsewhere = self.path("renamed.gguf")
        os.symlink(MODEL, elsewhere)
        environment = {**os.environ, "CQKV_CACHE_DIR": self.path("cache")}

        def find():
            return subprocess.run([CQKV, "find", "-m", elsewhere], capture_output=True, text=True,
                                  env=environment).stdout.strip()

        shipped = find()
        self.assertRegex(shipped, r"/codebooks/SmolLM2-135M-Instruct\.cq-1\.00b\.gguf$")
        os.makedirs(self.path("cache/codebooks"))
        shutil.copy(shipped, self.path("cache/codebooks/learned.gguf"))
        self.assertEqual(find(), self.path("cache/codebooks/learned.gguf"))
        shutil.copy(shipped, self.path("renamed.cq-1b.gguf"))
        self.assertEqual(find(), self.path("renamed.cq-1b.gguf"))

    def test_coded_results_do_not_depend_on_the_physical_batch(self):
        codebook = self.path("random.gguf")
        subprocess.run([MAKE_CODEBOOK, codebook, "30", "4c8b", "3", "64", "llama"], check=True)
        figures, _ = self.perplexity("-c", "256", "--chunks", "1", "--score", "all", "--no-bos",
                                     "--base", codebook + "@ub:256", "--kv-codebook",
                                     codebook + "@ub:32", codebook + "@ub:128")
        # The cache and its attention are bit-equal for any batch (tests/device); what is left
        # is the host's matrix kernels, for which stock-ub:32 shows 0.004 on this model.
        for entry in figures["codebooks"]:
            self.assertLess(entry["kld_mean"], 0.02, entry["name"])
            self.assertGreater(entry["top1"], 0.9, entry["name"])

    def test_variants(self):
        codebook = self.path("random.gguf")
        subprocess.run([MAKE_CODEBOOK, codebook, "30", "8c8b", "3", "64", "llama"], check=True)
        figures, result = self.perplexity("-c", "256", "--chunks", "1", "--score", "all",
                                          "--no-bos", "--kv-codebook", codebook, "none",
                                          "stock-nofa")
        coded, none, stock = figures["codebooks"]
        for entry in (coded, none, stock):
            for key in KEYS:
                self.assertIn(key, entry)
            self.assertEqual(entry["n_scored"], 255)
            self.assertEqual(entry["cache_bytes_f16"], 256 * N_CHANNELS * 2)
        # The device's own 16-bit mode is as near to stock as stock's variants to each other.
        self.assertLessEqual(none["kld_mean"], stock["kld_mean"] + 1e-6)
        self.assertLess(stock["kld_mean"], 0.05)
        # Random centroids are far off, but their bytes are right.
        self.assertGreater(coded["kld_mean"], 1)
        self.assertEqual(coded["bits_codes"], 1.0)
        self.assertEqual(coded["cache_bytes"], 256 * N_CHANNELS // 8 + 256 * 4)
        self.assertEqual(coded["cache_bytes_device"], coded["cache_bytes"])
        self.assertAlmostEqual(coded["bits_all_in"], 1 + 32 / N_CHANNELS + 4096 / 256, places=9)
        self.assertIn("perplexity", result.stderr)  # progress
        self.assertNotIn("warning", result.stderr)

    def test_rows_of_one_configuration_can_be_told_apart(self):
        one, two = self.path("one.gguf"), self.path("two.gguf")
        other = os.path.join(self.folder.name, "other")
        os.mkdir(other)
        subprocess.run([MAKE_CODEBOOK, one, "30", "8c8b", "3", "64", "llama"], check=True)
        shutil.copy(one, two)
        shutil.copy(one, other)
        _, result = self.perplexity("-c", "64", "--chunks", "1", "--kv-codebook", one, two,
                                    one + "@window:3", "stock")
        rows = [line.split("  ")[0] for line in result.stdout.splitlines()[-4:]]
        self.assertEqual(len(set(rows)), 4, rows)
        self.assertTrue(rows[0].endswith(" [one.gguf]"), rows)
        self.assertTrue(rows[1].endswith(" [two.gguf]"), rows)
        self.assertNotIn("[", rows[2] + rows[3], "told apart by the window, the kind")
        _, result = self.perplexity("-c", "64", "--chunks", "1", "--kv-codebook", one,
                                    os.path.join(other, "one.gguf"))
        self.assertIn(f"[{one}]", result.stdout)
        self.assertIn(f"[{other}/one.gguf]", result.stdout)

    def test_many_codebooks_take_turns_in_memory(self):
        """All contexts at once would take 1.2 GiB; figures must be those of a codebook alone."""
        names = [self.path(f"{i}.gguf") for i in range(28)]
        subprocess.run([MAKE_CODEBOOK, names[0], "30", "8c8b", "3", "64", "llama"], check=True)
        for name in names[1:]:
            shutil.copy(names[0], name)
        flags = ["-c", "128", "--chunks", "2", "-ub", "64", "--score", "all", "-t", "1"]
        alone, result = self.perplexity(*flags, "--kv-codebook", names[0], "stock-nofa")
        self.assertNotIn("GiB beside the model", result.stderr)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        many, _ = self.perplexity(*flags, "--kv-codebook", *names, "stock-nofa")
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.assertLess(after, max(before, 500 * 1024), "KiB of the largest process")
        entries = many["codebooks"]
        self.assertEqual(len(entries), 29)
        for entry in entries[:28]:
            self.assertEqual({**entry, "path": names[0]}, alone["codebooks"][0])
        self.assertEqual(entries[28], alone["codebooks"][1])
        for key in ("ppl_base", "ppl_base_se", "n_scored", "n_cells"):
            self.assertEqual(many[key], alone[key])

    def test_json_on_standard_output_stands_alone(self):
        result = run("perplexity", "-m", MODEL, "-f", self.text, "-c", "64", "--chunks", "1", "-q",
                     "--json", "-")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout)["n_chunks"], 1)

    def test_text_too_short_or_missing(self):
        result = run("perplexity", "-m", MODEL, "-f", self.text, "-c", "100000")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"has \d+ tokens, want at least 100000")
        result = run("perplexity", "-m", MODEL, "-f", self.path("none.txt"), "-c", "64")
        self.assertEqual(result.returncode, 1)
        self.assertIn("No such file", result.stderr)

    def calibrate(self, text, output, *arguments):
        return run("calibrate", "-m", MODEL, "-f", text, "-o", self.path(output), "--weights",
                   "uniform", "-c", "256", "--max-iterations", "2", *arguments)

    def test_nothing_asked_for_is_one_bit_with_rates_by_head(self):
        result = run("calibrate", "-m", MODEL, "-o", self.path("one.gguf"), "-c", "256",
                     "--n-tokens", "512", "--max-iterations", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("no -f: learning from the project's own prose, code and conversation",
                      result.stderr)
        self.assertIn("cq-1.00b fisher", result.stdout)
        self.assertIn("rates chosen on 512 tokens more", result.stdout)
        shown = json.loads(run("inspect", "--json", self.path("one.gguf")).stdout)
        self.assertLessEqual(shown["bits_per_channel"], 1.0)
        dims = {dim for layer in shown["layers"] for kind in "kv" for dim in
                layer[kind]["group_dims"]}
        self.assertGreater(len(dims), 2, "heads have rates of their own")
        self.assertIn(0, dims, "and some need no codes")

    def test_one_run_for_several_configurations(self):
        result = self.calibrate(self.text, "{config}.gguf", "--config", "8c6b,4c4b", "--config-k",
                                "8c4b", "--n-tokens", "512")
        self.assertEqual(result.returncode, 0, result.stderr)
        for values in ("8c6b", "4c4b"):
            name = f"8c4b-{values}.gguf"
            self.assertIn(name, result.stdout)
            shown = json.loads(run("inspect", "--json", self.path(name)).stdout)
            self.assertEqual(shown["layers"][0]["k"]["config"], "8c4b")
            self.assertEqual(shown["layers"][0]["v"]["config"], values)
            self.assertEqual((shown["n_tokens"], shown["held_out"]["n_tokens"]), (512, 32))
            self.assertGreater(shown["held_out"]["v_loss"], 0)

    def test_calibration_on_too_little_is_refused(self):
        with open(self.path("two.txt"), "w") as out:
            out.write("hello world")
        result = self.calibrate(self.path("two.txt"), "out.gguf", "--n-tokens", "2")
        self.assertEqual(result.returncode, 1, result.stdout)
        for word in ("got 2 tokens", "at least 256", "8c8b", "--n-tokens"):
            self.assertIn(word, result.stderr)
        self.assertFalse(os.path.exists(self.path("out.gguf")))

    def test_calibration_on_poor_text_warns(self):
        with open(self.path("poor.txt"), "w") as out:
            out.write("The quick brown fox jumps over the lazy dog.\n" * 100)
        result = self.calibrate(self.path("poor.txt"), "out.gguf", "-q", "--config", "8c6b",
                                "--n-tokens", "512")
        self.assertEqual(result.returncode, 0, result.stderr)
        warnings = [line for line in result.stderr.splitlines() if "warning" in line]
        self.assertEqual(len(warnings), 2, result.stderr)
        self.assertIn("cqkv calibrate: warning: the texts have only 11 different", warnings[0])
        self.assertIn("480 vectors for the 64 centroids", warnings[1])
        self.assertNotIn("warning", result.stdout)

    def test_interrupted_calibration_leaves_nothing(self):
        before = sorted(os.listdir(self.folder.name))
        process = subprocess.Popen(
            [CQKV, "calibrate", "-m", MODEL, "-f", os.path.join(DATA, "wikitext2-train-1200k.txt"),
             "-o", self.path("out.gguf"), "--weights", "uniform"],
            stderr=subprocess.PIPE, text=True)
        try:
            process.stderr.readline()  # the first progress
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("interrupted", errors)
        self.assertEqual(sorted(os.listdir(self.folder.name)), before)


if __name__ == "__main__":
    sys.exit(unittest.main())
