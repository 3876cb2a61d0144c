"""llama-server on a coded cache, driven by a real client: two slots in parallel, a
slot saved and restored into the other, a context shift past the context size, and
what a user sees when the state belongs to another codebook. SmolLM2-135M."""

import concurrent.futures
import os
import re
import tempfile
import unittest
import urllib.error

from llama_client import LlamaServer
from server import CQKV, LONG_PROMPT, MODEL, Server, calibrate

class ServerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.codebook = calibrate(cls.folder.name, "wiki.gguf")

    def start(self, *arguments, codebook=None, ours=()):
        server = Server(codebook or self.codebook, self.folder.name, *arguments, ours=ours)
        self.addCleanup(server.stop)
        return server

    def start_stock(self, *arguments):
        handle, log_path = tempfile.mkstemp(".log", "stock-", self.folder.name)
        os.close(handle)
        server = LlamaServer(
            [os.path.join(os.path.dirname(CQKV), "llama-server"), "-m", MODEL, "-t", "2",
             "--no-warmup", "--slot-save-path", self.folder.name, *arguments], log_path)
        self.addCleanup(server.stop)
        return server

    def logged_mebibytes(self, *ours, slots=1):
        server = self.start("-c", "1024", "-np", str(slots), "--kv-unified", "-lv", "4", ours=ours)
        found = re.search(r"CQ0 KV buffer size = +([\d.]+) MiB", server.log_text())
        self.assertIsNotNone(found, server.log_text()[-3000:])
        return float(found.group(1)), server.log_text()

    def test_log_shows_the_coded_size(self):
        # 2 bits a channel, 30 layers, K and V, 192 channels, 1024 cells; 4 bytes a position.
        codes = (30 * 2 * 192 * 2 // 8 * 1024 + 4 * 1024) / 1024 / 1024
        size, log = self.logged_mebibytes("--window", "0", "--sinks", "0")
        self.assertAlmostEqual(size, codes, delta=0.006)
        self.assertIn("no exact window", log)
        # A row of a tensor is a byte a channel and a float for 32; 128 + 4 rows a slot, and 16 more
        # or as many as weigh a quarter of the codes.
        quarter = 1024 * 48 // 4 // (192 + 24)
        for slots in (1, 3, 4):
            size, log = self.logged_mebibytes(slots=slots)
            rows = slots * 132 + max(slots * 16, quarter)
            mebibytes = 30 * 2 * (192 + 24) / 1024 / 1024
            self.assertAlmostEqual(size, codes + rows * mebibytes, delta=0.04)
            self.assertIn(f"window 128 + 4 sinks {slots * 148 * mebibytes:.2f} MiB, "
                          f"spare rows {max(0, quarter - slots * 16) * mebibytes:.2f} MiB", log)

    def test_two_slots_in_parallel(self):
        for unified in ("--kv-unified", "--no-kv-unified"):
            with self.subTest(unified):
                server = self.start("-c", "1024", "-np", "2", unified)
                prompts = [LONG_PROMPT + "The keeper", "Water boils at a temperature of"]
                with concurrent.futures.ThreadPoolExecutor(2) as pool:
                    together = list(pool.map(
                        lambda item: server.complete(item[1], item[0], 24), enumerate(prompts)))
                for slot, answer in enumerate(together):
                    self.assertEqual(answer["id_slot"], slot)
                    self.assertEqual(answer["tokens_predicted"], 24)
                # Slots do not see each other: what comes first, from the prompt alone, is
                # what each prompt gives by itself. (Later tokens may part where the host's
                # matrix kernels round differently for other batch sizes.)
                for slot, prompt in enumerate(prompts):
                    alone = server.complete(prompt, slot, 24, cache_prompt=False)
                    self.assertEqual(alone["content"][:8], together[slot]["content"][:8])

    def test_slot_saved_and_restored_into_the_other(self):
        server = self.start("-c", "1024", "-np", "2")
        server.complete(3 * LONG_PROMPT, 0, 1)
        saved = server.post("/slots/0?action=save", {"filename": "slot.bin"})
        self.assertGreater(saved["n_saved"], 150, "more than the exact window")
        restored = server.post("/slots/1?action=restore", {"filename": "slot.bin"})
        self.assertEqual(restored["n_restored"], saved["n_saved"])
        first = server.complete(3 * LONG_PROMPT + "Then", 0, 32)
        second = server.complete(3 * LONG_PROMPT + "Then", 1, 32)
        self.assertGreater(second["timings"]["cache_n"], 150, "served from the restored codes")
        self.assertEqual(second["content"], first["content"])

    def test_stock_reads_a_coded_slot_as_finite_numbers(self):
        # It cannot make sense of it, but must go on working: a NaN in a unified cache would spoil
        # that slot for good, since masked cells are multiplied by 0.
        coded = self.start("-c", "1024", "-np", "1")
        coded.complete(3 * LONG_PROMPT, 0, 4)
        coded.post("/slots/0?action=save", {"filename": "coded.bin"})
        coded.stop()
        for slots in (("-np", "2", "--kv-unified"), ("-np", "1", "--no-kv-unified")):
            with self.subTest(slots):
                stock = self.start_stock("-c", "1024", *slots)
                want = stock.complete(LONG_PROMPT + "Then", 0, 16)["content"]
                stock.post("/slots/0?action=restore", {"filename": "coded.bin"})
                answer = stock.complete(3 * LONG_PROMPT + "Then", 0, 4, n_probs=3)
                for token in answer["completion_probabilities"]:
                    self.assertIsNotNone(token["logprob"], "null stands for NaN")
                stock.post("/slots/0?action=erase", {})
                again = stock.complete(LONG_PROMPT + "Then", 0, 16)
                self.assertEqual(again["content"], want)

    def test_damaged_slot_file_is_refused(self):
        server = self.start("-c", "1024", "-np", "1")
        prompt = 3 * LONG_PROMPT
        server.complete(prompt, 0, 1)
        server.post("/slots/0?action=save", {"filename": "damaged.bin"})
        path = os.path.join(self.folder.name, "damaged.bin")
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        server.post("/slots/0?action=restore", {"filename": "damaged.bin"})
        self.assertIn("the saved row is damaged: got checksum", server.log_text())
        with self.assertRaises(urllib.error.HTTPError):
            server.complete(prompt + "Then", 0, 4)
        self.assertEqual(server.complete(prompt, 0, 4, cache_prompt=False)["tokens_predicted"], 4)

    def test_context_shift(self):
        server = self.start("-c", "256", "-np", "1", "--context-shift")
        answer = server.complete(LONG_PROMPT, 0, 400, ignore_eos=True)
        self.assertEqual(answer["tokens_predicted"], 400)
        self.assertTrue(answer["truncated"])
        self.assertGreater(len(answer["content"].split()), 100)

    def test_state_of_another_codebook_is_refused(self):
        server = self.start("-c", "512", "-np", "1")
        server.complete(LONG_PROMPT, 0, 1)
        server.post("/slots/0?action=save", {"filename": "other.bin"})
        other = self.start("-c", "512", "-np", "1",
                           codebook=calibrate(self.folder.name, "code.gguf", "code-calib.txt"))
        other.post("/slots/0?action=restore", {"filename": "other.bin"})
        with self.assertRaises(urllib.error.HTTPError):
            other.complete(LONG_PROMPT + "Then", 0, 4)
        self.assertIn("was coded with codebook", other.log_text())
        self.assertIsNone(other.process.poll(), "the server goes on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
