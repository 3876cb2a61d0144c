"""Every program of llama.cpp that takes a device, with its default flags and `-dev CQ0`, as people
start them: it runs, on a coded cache, and says so in one line. And what that line is where the
cache is not coded, or only in part."""

import os
import subprocess
import tempfile
import unittest

from llama_client import LlamaServer

CQKV = os.environ["CQKV_PROGRAM"]
MAKE_CODEBOOK = os.environ["CQKV_MAKE_CODEBOOK"]
MODEL = os.environ["CQKV_TEST_MODEL"]
DATA = os.environ["CQKV_DATA"]
BIN = os.path.dirname(CQKV)
CODED = "all 30 layers are coded with book.gguf"


class ProgramsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.codebook = os.path.join(cls.folder, "book.gguf")
        subprocess.run([MAKE_CODEBOOK, cls.codebook, "30", "8c8b", "3", "64", "llama"], check=True)
        cls.text = os.path.join(cls.folder, "text.txt")
        with open(os.path.join(DATA, "wikitext2-test.txt"), encoding="utf-8") as whole, \
                open(cls.text, "w", encoding="utf-8") as some:
            some.write(whole.read(6000))

    def environment(self, **more):
        return {**os.environ, "CQKV_CODEBOOK": self.codebook,
                "GGML_BACKEND_PATH": os.path.join(BIN, "libggml-cq.so"), **more}

    def run_program(self, program, *arguments, want=0, **more):
        result = subprocess.run(
            [os.path.join(BIN, program), "-m", MODEL, *arguments], capture_output=True, text=True,
            errors="replace", timeout=600, env=self.environment(**more), stdin=subprocess.DEVNULL)
        output = result.stdout + result.stderr
        self.assertEqual(result.returncode, want, f"{program} {arguments}:\n{output[-3000:]}")
        return output

    def complete(self, *arguments, want=0, **more):
        return self.run_program("llama-completion", "-p", "Hello", "-n", "2", "-no-cnv", *arguments,
                                want=want, **more)

    def test_completion(self):
        self.assertIn(CODED, self.complete("-dev", "CQ0"))

    def test_the_environment_alone(self):
        self.assertIn(CODED, self.complete(LLAMA_ARG_DEVICE="CQ0"))

    def test_cli(self):
        output = self.run_program("llama-cli", "-dev", "CQ0", "-p", "Hello", "-n", "2", "-st")
        self.assertNotIn("cqkv:", output, "llama-cli shows errors only")
        output = self.run_program("llama-cli", "-dev", "CQ0", "-p", "Hello", "-n", "2", "-st",
                                  "-lv", "3")
        self.assertIn(CODED, output)

    def test_perplexity(self):
        self.assertIn(CODED, self.run_program("llama-perplexity", "-dev", "CQ0", "-f", self.text,
                                              "--chunks", "1"))

    def test_imatrix(self):
        self.assertIn(CODED, self.run_program("llama-imatrix", "-dev", "CQ0", "-f", self.text,
                                              "--chunks", "1", "-o",
                                              os.path.join(self.folder, "imatrix.gguf")))

    def test_results(self):
        self.assertIn(CODED, self.run_program("llama-results", "-dev", "CQ0", "-p", "Hello there",
                                              "-o", os.path.join(self.folder, "results.gguf")))

    def test_batched_bench(self):
        self.assertIn(CODED, self.run_program("llama-batched-bench", "-dev", "CQ0", "-npp", "16",
                                              "-ntg", "4", "-npl", "1,2"))

    def test_bench(self):
        output = self.run_program("llama-bench", "-p", "16", "-n", "4", "-r", "1", "-v")
        self.assertIn(CODED, output)

    def test_fit_counts_the_coded_size(self):
        # A context of 512K tokens takes 11.5 GiB with 16-bit rows and 0.7 GiB coded; 4 GiB are left
        # for it.
        with open("/proc/meminfo", encoding="ascii") as info:
            lines = dict(line.split(":") for line in info)
        margin = max(1, int(lines["MemAvailable"].split()[0]) // 1024 - 4096)
        arguments = ("-dev", "CQ0", "-fitt", str(margin), "--override-kv",
                     "llama.context_length=int:524288")
        self.assertIn("-c 524288", self.run_program("llama-fit-params", *arguments))
        self.assertNotIn("-c 524288", self.run_program("llama-fit-params", *arguments,
                                                       CQKV_CODEBOOK=""))

    def test_server(self):
        log = os.path.join(self.folder, "server.log")
        server = LlamaServer([os.path.join(BIN, "llama-server"), "-m", MODEL, "-dev", "CQ0"], log,
                             self.environment())
        try:
            self.assertEqual(server.complete("Hello", -1, 2)["tokens_predicted"], 2)
            self.assertIn(CODED, server.log_text())
        finally:
            server.stop()

    def test_what_is_said_where_not_all_is_coded(self):
        for flags, words in ((("-nkvo",), "the cache is NOT coded"),
                             (("-ngl", "0"), "the cache is NOT coded"),
                             (("-ngl", "29"), "only 28 of 30 layers are coded"),
                             (("-ngl", "30"), "only 29 of 30 layers are coded")):
            with self.subTest(flags):
                output = self.complete("-dev", "CQ0", *flags)
                self.assertEqual(output.count("cqkv:"), 1, output)
                self.assertIn(words, output)
                self.assertIn("-ngl 99", output)
        output = self.complete("-dev", "CQ0", CQKV_CODEBOOK="")
        self.assertIn("cqkv: no codebook is set (CQKV_CODEBOOK)", output)

    def test_refusals_show_with_default_flags(self):
        self.assertIn("run with -fa on", self.complete("-dev", "CQ0", "-fa", "off", want=1))
        self.assertIn("got q8_0, want f16", self.complete("-dev", "CQ0", "-ctk", "q8_0", want=1))
        self.assertIn("CQKV_FORCE_ISA: got 'foo'",
                      self.complete("-dev", "CQ0", want=1, CQKV_FORCE_ISA="foo"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
