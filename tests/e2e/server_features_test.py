"""What people do with llama-server every day, on a coded cache: many slots, reuse of the
prompt cache, with shifts too, erased slots, several completions of one prompt, cancelled
requests, speculative decoding, embeddings, LoRA, self-extend. SmolLM2-135M."""

import concurrent.futures
import os
import random
import struct
import subprocess
import tempfile
import time
import unittest

from server import CQKV, LONG_PROMPT, MODEL, Server, calibrate

TAIL = "In the end the light was electric, and nobody had to climb the stairs at night any more. "


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_lora(path, strength):
    """A rank-1 adapter of layer 0's keys and values (SmolLM2: 576 to 192 channels)."""
    generator = random.Random(1)
    tensors = []
    for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        for suffix, shape in ((".lora_a", (576, 1)), (".lora_b", (1, 192))):
            values = [generator.gauss(0, strength) for _ in range(shape[0] * shape[1])]
            tensors.append((name + suffix, shape, struct.pack(f"<{len(values)}f", *values)))
    pairs = [("general.type", 8, gguf_string("adapter")),
             ("general.architecture", 8, gguf_string("llama")),
             ("adapter.type", 8, gguf_string("lora")),
             ("adapter.lora.alpha", 6, struct.pack("<f", 1.0))]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, kind, value in pairs:
        header += gguf_string(key) + struct.pack("<I", kind) + value
    offset = 0
    for name, shape, data in tensors:
        header += gguf_string(name) + struct.pack("<IQQIQ", 2, *shape, 0, offset)
        offset += (len(data) + 31) // 32 * 32
    with open(path, "wb") as file:
        file.write(header.ljust((len(header) + 31) // 32 * 32, b"\0"))
        for _, _, data in tensors:
            file.write(data.ljust((len(data) + 31) // 32 * 32, b"\0"))


class ServerFeaturesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.codebook = calibrate(cls.folder.name, "wiki.gguf")

    def start(self, *arguments, ours=()):
        server = Server(self.codebook, self.folder.name, *arguments, ours=ours)
        self.addCleanup(server.stop)
        return server

    def assert_clean(self, server):
        log = server.log_text()
        for word in ("cqkv: a token", "cqkv: restoring", "failed to decode", "Decode() failed",
                     "out of memory"):
            self.assertNotIn(word, log)

    def test_many_slots_and_the_prompt_cache(self):
        server = self.start("-c", "4096", "-np", "4")
        prompts = [f"{LONG_PROMPT}Keeper number {i} said" for i in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda p: server.complete(p, -1, 16), prompts))
        self.assertEqual([a["tokens_predicted"] for a in answers], 8 * [16])
        again = server.complete(prompts[0] + " that", -1, 4)
        self.assertGreater(again["timings"]["cache_n"], 30, "the common beginning is not repeated")
        self.assert_clean(server)

    def test_cache_reuse_with_shifts(self):
        server = self.start("-c", "1024", "-np", "1", "--cache-reuse", "16", "-lv", "4")
        first = server.complete("Once there was a tower. " + LONG_PROMPT + TAIL, 0, 1)
        # The middle goes; what follows is taken from the cache at other positions.
        second = server.complete("Once there was a tower. " + TAIL, 0, 24)
        self.assertGreater(second["timings"]["cache_n"], 20, server.log_text()[-2000:])
        self.assertLess(second["tokens_evaluated"], first["tokens_evaluated"])
        self.assertEqual(second["tokens_predicted"], 24)
        self.assert_clean(server)

    def test_erased_slot_starts_anew(self):
        server = self.start("-c", "512", "-np", "1")
        first = server.complete(LONG_PROMPT, 0, 12)
        erased = server.post("/slots/0?action=erase", {})
        self.assertGreater(erased["n_erased"], 30)
        again = server.complete(LONG_PROMPT, 0, 12)
        self.assertEqual(again["timings"]["cache_n"], 0)
        self.assertEqual(again["content"], first["content"])

    def test_several_completions_of_one_prompt(self):
        for unified in ("--kv-unified", "--no-kv-unified"):
            with self.subTest(unified):
                server = self.start("-c", "2048", "-np", "2", unified)
                answer = server.post("/v1/completions", {
                    "prompt": LONG_PROMPT + "The keeper", "n": 2, "temperature": 0,
                    "max_tokens": 16})
                texts = [choice["text"] for choice in answer["choices"]]
                self.assertEqual(len(texts), 2)
                # Copies of one cache: their first words are the same.
                self.assertEqual(texts[0][:8], texts[1][:8])
                self.assert_clean(server)

    def test_cancelled_requests_free_their_slot(self):
        server = self.start("-c", "2048", "-np", "2")
        for _ in range(4):
            self.assertIn(b"200 OK", server.cancel("Count: one two three", 1500, 2))
        deadline = time.time() + 60
        while any(slot["is_processing"] for slot in server.get("/slots")):
            self.assertLess(time.time(), deadline, "a slot never came free")
            time.sleep(0.1)
        self.assertEqual(server.complete(LONG_PROMPT, -1, 8)["tokens_predicted"], 8)
        self.assert_clean(server)

    def test_speculative_decoding(self):
        plain = self.start("-c", "1024", "-np", "1")
        prompt = LONG_PROMPT + "The keeper"
        want = plain.complete(prompt, 0, 32)["content"]
        plain.stop()
        # The model drafts for itself, on its own coded cache.
        server = self.start("-c", "1024", "-np", "1", "-md", MODEL, "--spec-type",
                            "draft-simple", "--spec-draft-n-max", "6")
        answer = server.complete(prompt, 0, 32)
        self.assertGreater(answer["timings"]["draft_n"], 0, server.log_text()[-2000:])
        self.assertGreater(answer["timings"]["draft_n_accepted"], 0)
        # Batches of drafts round otherwise, so texts may part later on.
        self.assertEqual(answer["content"][:12], want[:12])
        self.assert_clean(server)

    def test_embeddings(self):
        server = self.start("-c", "512", "-np", "1", "--embeddings", "--pooling", "mean")
        near, same, far = (server.post("/embedding", {"content": text})[0]["embedding"][0]
                           for text in ("A lighthouse by the sea.", "A lighthouse by the sea.",
                                        "def f(x): return x * x"))
        self.assertEqual(len(near), 576)
        self.assertEqual(near, same)
        self.assertNotEqual(near, far)

    def test_lora(self):
        path = os.path.join(self.folder.name, "lora.gguf")
        write_lora(path, 0.3)
        server = self.start("-c", "512", "-np", "1", "--lora", path)
        without = server.complete(LONG_PROMPT, 0, 16, lora=[{"id": 0, "scale": 0.0}],
                                  cache_prompt=False)
        strong = server.complete(LONG_PROMPT, 0, 16, lora=[{"id": 0, "scale": 8.0}],
                                 cache_prompt=False)
        self.assertEqual(strong["tokens_predicted"], 16)
        self.assertNotEqual(strong["content"], without["content"])
        self.assert_clean(server)

    def test_self_extend(self):
        result = subprocess.run(
            [CQKV, "run", "-m", MODEL, "--kv-codebook", self.codebook, "--", "-no-cnv", "-c", "512",
             "--grp-attn-n", "2", "--grp-attn-w", "64", "-p", 3 * LONG_PROMPT, "-n", "40", "-t",
             "2", "--temp", "0", "--ignore-eos"],
            capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(result.returncode, 0, result.stderr[-2000:])
        self.assertGreater(len(result.stdout) - len(3 * LONG_PROMPT), 80)


if __name__ == "__main__":
    unittest.main(verbosity=2)
