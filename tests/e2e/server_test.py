"""llama-server on a coded cache, driven by a real client: two slots in parallel, a
slot saved and restored into the other, a context shift past the context size, and
what a user sees when the state belongs to another codebook. SmolLM2-135M."""

import concurrent.futures
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

CQKV = os.environ["CQKV_PROGRAM"]
MODEL = os.environ["CQKV_TEST_MODEL"]
DATA = os.environ["CQKV_DATA"]

LONG_PROMPT = (
    "The history of the lighthouse begins with fires lit on hilltops. Later, fires were placed "
    "on platforms, and towers were built to carry them. A keeper lived beside the light and "
    "tended it through the night. Ships far out at sea could see it and steer by it. ")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """cqkv serve on a free port, with its log in a file."""

    def __init__(self, codebook, folder, *arguments, ours=()):
        self.port = free_port()
        self.log_path = os.path.join(folder, f"server-{self.port}.log")
        self.log = open(self.log_path, "w", encoding="utf-8")
        command = [CQKV, "serve", "-m", MODEL, "--kv-codebook", codebook, *ours, "--", "--host",
                   "127.0.0.1", "--port", str(self.port), "-t", "2", "--no-warmup",
                   "--slot-save-path", folder, *arguments]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.wait_until_ready()

    def wait_until_ready(self):
        deadline = time.time() + 120
        while time.time() < deadline:
            if self.process.poll() is not None:
                raise AssertionError("server stopped:\n" + self.log_text()[-3000:])
            try:
                if self.get("/health")["status"] == "ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError("server not ready:\n" + self.log_text()[-3000:])

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def post(self, path, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def complete(self, prompt, slot, n_predict, **more):
        return self.post("/completion", {"prompt": prompt, "id_slot": slot, "temperature": 0,
                                         "n_predict": n_predict, "cache_prompt": True, **more})

    def log_text(self):
        self.log.flush()
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.log.close()


class ServerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.codebook = cls.calibrate("wiki.gguf", "wikitext2-train-1200k.txt")

    @classmethod
    def calibrate(cls, name, text):
        # Small and quick, but learned: a server on it speaks English.
        path = os.path.join(cls.folder.name, name)
        subprocess.run([CQKV, "calibrate", "-q", "-m", MODEL, "-f", os.path.join(DATA, text), "-o",
                        path, "--config", "4c8b", "--weights", "uniform", "--n-tokens", "1024",
                        "-c", "512", "--max-iterations", "8"], check=True, timeout=600)
        return path

    def start(self, *arguments, codebook=None, ours=()):
        server = Server(codebook or self.codebook, self.folder.name, *arguments, ours=ours)
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
        # A row of a tensor is a byte a channel and a float for 32; 128 + 16 + 4 rows a slot.
        for slots in (1, 3):
            size, log = self.logged_mebibytes(slots=slots)
            rows = slots * 148 * 30 * 2 * (192 + 24) / 1024 / 1024
            self.assertAlmostEqual(size, codes + rows, delta=0.03)
            self.assertIn(f"window 128 and 4 sinks, {slots * 148} exact rows", log)

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
                           codebook=self.calibrate("code.gguf", "code-calib.txt"))
        other.post("/slots/0?action=restore", {"filename": "other.bin"})
        with self.assertRaises(urllib.error.HTTPError):
            other.complete(LONG_PROMPT + "Then", 0, 4)
        self.assertIn("was coded with codebook", other.log_text())
        self.assertIsNone(other.process.poll(), "the server goes on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
