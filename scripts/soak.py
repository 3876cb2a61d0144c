#!/usr/bin/env python3
"""Soak test of llama-server on a coded cache, beside stock.

Eight slots serve random greedy requests at once: fresh prompts, conversations that go on,
cancelled streams, slots saved and restored into others, answers that run past the context
(shifts). Answers are then asked for again from a server with one slot, all or a random
sample of them, and the share that differs is printed, for the coded cache and for stock's
16-bit cache under requests from the same seed. Also checked: the server's memory, its log.

  scripts/soak.py --model M.gguf --codebook CB.gguf [--minutes 60] [--stock-minutes 60]
                  [--replay N] [--seed 1] [--out FOLDER]

Exit code 1 if an error is in a log, a request fails, or memory grows.
"""

import argparse
import concurrent.futures
import os
import random
import re
import sys
import threading
import time
import urllib.error

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))

from llama_client import LlamaServer  # noqa: E402: found through the line above

BIN = os.path.join(ROOT, "build", "bin")
TEXT = os.path.join(ROOT, "data", "wikitext2-test.txt")
N_SLOTS = 8
SLOT_TOKENS = 512
BAD_WORDS = ("cqkv: a token", "cqkv: restoring", "failed to decode", "Decode() failed",
             "out of memory", "GGML_ASSERT", "exact window has room")


class Server(LlamaServer):
    def __init__(self, options, coded, n_slots, unified, name):
        context = ["-c", str(n_slots * SLOT_TOKENS), "-np", str(n_slots)]
        if n_slots > 1:
            context += ["--kv-unified", "--kv-unified-per-slot", str(SLOT_TOKENS)] if unified else [
                "--no-kv-unified"]
        theirs = ["-t", "2", "--context-shift", "--slot-save-path", options.out, "--cache-ram", "0",
                  *context]
        if coded:
            command = [os.path.join(BIN, "cqkv"), "serve", "-m", options.model, "--kv-codebook",
                       options.codebook, "--", *theirs]
        else:
            command = [os.path.join(BIN, "llama-server"), "-m", options.model, "-fa", "on",
                       "-ngl", "0", *theirs]
        environment = {key: value for key, value in os.environ.items() if key != "GGML_BACKEND_PATH"}
        super().__init__(command, os.path.join(options.out, name + ".log"), environment)

    def answer(self, request, slot=-1):
        return self.complete(request["prompt"], slot, request["n_predict"],
                             ignore_eos=True)["content"]

    def resident_mebibytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def stop_and_complain(self):
        self.stop()
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return sorted({line.strip() for line in log if any(word in line for word in BAD_WORDS)})


class Requests:
    """Random requests from a seed; prompts are pieces of a text."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        with open(TEXT, encoding="utf-8") as file:
            self.words = file.read().split(" ")

    def piece(self, n_words):
        first = self.random.randrange(len(self.words) - n_words)
        return " ".join(self.words[first:first + n_words])

    def next(self):
        kind = self.random.choices(("fresh", "talk", "cancel", "save", "shift"),
                                   (8, 5, 3, 2, 1))[0]
        request = {"kind": kind, "prompt": self.piece(self.random.randrange(10, 180)),
                   "n_predict": self.random.randrange(4, 32)}
        if kind == "talk":
            request["more"] = [self.piece(self.random.randrange(3, 20))
                               for _ in range(self.random.randrange(1, 4))]
        elif kind == "cancel":
            request["n_chunks"] = self.random.randrange(1, 30)
        elif kind == "save":
            request["more"] = [self.piece(10)]
        elif kind == "shift":
            request["prompt"] = self.piece(200)
            request["n_predict"] = SLOT_TOKENS
        return request


class Soak:
    def __init__(self, server):
        self.server = server
        self.answers = []  # (request, answer), to be asked for again
        self.failures = []
        self.lock = threading.Lock()
        self.pairs = [threading.Lock() for _ in range(N_SLOTS // 2)]
        self.counts = {}

    def ask(self, request, slot=-1):
        answer = self.server.answer(request, slot)
        with self.lock:
            self.answers.append(({"prompt": request["prompt"], "n_predict": request["n_predict"]},
                                 answer))
        return answer

    def run(self, request, number):
        try:
            getattr(self, "do_" + request["kind"])(request, number)
        except (urllib.error.URLError, ConnectionError, OSError, KeyError) as error:
            with self.lock:
                self.failures.append(f"{request['kind']}: {error}")
        with self.lock:
            self.counts[request["kind"]] = self.counts.get(request["kind"], 0) + 1

    def do_fresh(self, request, _number):
        self.ask(request)

    do_shift = do_fresh

    def do_talk(self, request, _number):
        prompt = request["prompt"]
        for more in request["more"]:
            prompt += self.ask({"prompt": prompt, "n_predict": request["n_predict"]}) + " " + more

    def do_cancel(self, request, _number):
        self.server.cancel(request["prompt"], 400, request["n_chunks"])

    def do_save(self, request, number):
        # Two slots belong to the pair while it saves from one into the other.
        pair = number % len(self.pairs)
        with self.pairs[pair]:
            source, target = 2 * pair, 2 * pair + 1
            prompt = request["prompt"] + self.ask(request, source)
            name = f"slot-{number}.bin"
            self.server.post(f"/slots/{source}?action=save", {"filename": name})
            self.server.post(f"/slots/{target}?action=restore", {"filename": name})
            os.unlink(os.path.join(self.server.log_path.rpartition("/")[0], name))
            self.ask({"prompt": prompt + " " + request["more"][0],
                      "n_predict": request["n_predict"]}, target)


def soak(options, coded, unified):
    """Half of the minutes; returns requests with answers, and what went wrong."""
    name = f"{'coded' if coded else 'stock'}-{'unified' if unified else 'streams'}"
    server = Server(options, coded, N_SLOTS, unified, name)
    requests = Requests(options.seed + (0 if unified else 1000))
    run = Soak(server)
    minutes = options.minutes if coded else options.stock_minutes
    end = time.time() + minutes * 60 / 2
    memory = []
    with concurrent.futures.ThreadPoolExecutor(N_SLOTS) as pool:
        pending = set()
        number = 0
        while time.time() < end:
            while len(pending) < N_SLOTS:
                pending.add(pool.submit(run.run, requests.next(), number))
                number += 1
            done, pending = concurrent.futures.wait(
                pending, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                future.result()
            memory.append(server.resident_mebibytes())
        concurrent.futures.wait(pending)
    complaints = run.failures + server.stop_and_complain()
    quarter = max(1, len(memory) // 4)
    early, late = max(memory[:2 * quarter]), max(memory[-quarter:])
    print(f"{name}: {number} requests {run.counts}, {len(run.answers)} answers; memory "
          f"{early:.0f} MiB in the first half, {late:.0f} MiB at the end", flush=True)
    if late > 1.05 * early + 16:
        complaints.append(f"memory grew from {early:.0f} to {late:.0f} MiB")
    for complaint in complaints:
        print(f"{name}: ERROR {complaint}", flush=True)
    return run.answers, complaints


def replay(options, coded, answers):
    """Returns how many answers were asked for again, how many differed, and complaints."""
    if options.replay and options.replay < len(answers):
        answers = random.Random(options.seed).sample(answers, options.replay)
    server = Server(options, coded, 1, False, ("coded" if coded else "stock") + "-replay")
    different = sum(server.answer(request, 0) != answer for request, answer in answers)
    complaints = server.stop_and_complain()
    for complaint in complaints:
        print(f"replay: ERROR {complaint}", flush=True)
    return len(answers), different, complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--codebook", required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of the coded soak")
    parser.add_argument("--stock-minutes", type=float, help="of stock's (default: the same)")
    parser.add_argument("--replay", type=int, default=0,
                        help="answers compared from each half of a soak (default 0: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="build/soak")
    options = parser.parse_args()
    options.out = os.path.abspath(options.out)
    if options.stock_minutes is None:
        options.stock_minutes = options.minutes
    os.makedirs(options.out, exist_ok=True)
    complaints = []
    for coded in (True, False):
        total = different = 0
        for unified in (True, False):
            answers, wrong = soak(options, coded, unified)
            n_compared, n_different, replay_wrong = replay(options, coded, answers)
            complaints += wrong + replay_wrong
            total += n_compared
            different += n_different
        print(f"{'coded' if coded else 'stock'}: {different} of {total} answers differ from the "
              f"single slot's ({100 * different / max(total, 1):.2f} %)", flush=True)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
