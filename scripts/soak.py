#!/usr/bin/env python3
"""Soak test of llama-server on a coded cache, beside stock.

Eight slots serve random greedy requests at once: fresh prompts, conversations that go on,
cancelled streams, slots saved and restored into others, answers that run past the context
(shifts). Every answer that can be compared is then asked for again from a server with one
slot, and the share of answers that differ is printed, for the coded cache and for stock's
16-bit cache under the same requests. Also checked: the server's memory, and its log.

  scripts/soak.py --model M.gguf --codebook CB.gguf [--minutes 60] [--seed 1] [--out FOLDER]

Exit code 1 if an error is in a log, a request fails, or memory grows.
"""

import argparse
import concurrent.futures
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(ROOT, "build", "bin")
TEXT = os.path.join(ROOT, "data", "wikitext2-test.txt")
N_SLOTS = 8
SLOT_TOKENS = 512
BAD_WORDS = ("cqkv: a token", "cqkv: restoring", "failed to decode", "Decode() failed",
             "out of memory", "GGML_ASSERT", "exact window has room")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, options, coded, n_slots, unified, name):
        self.port = free_port()
        self.log_path = os.path.join(options.out, name + ".log")
        context = ["-c", str(n_slots * SLOT_TOKENS), "-np", str(n_slots)]
        if n_slots > 1:
            context += ["--kv-unified", "--kv-unified-per-slot", str(SLOT_TOKENS)] if unified else [
                "--no-kv-unified"]
        theirs = ["--host", "127.0.0.1", "--port", str(self.port), "-t", "2", "--context-shift",
                  "--slot-save-path", options.out, "--cache-ram", "0", *context]
        if coded:
            command = [os.path.join(BIN, "cqkv"), "serve", "-m", options.model, "--kv-codebook",
                       options.codebook, "--", *theirs]
        else:
            command = [os.path.join(BIN, "llama-server"), "-m", options.model, "-fa", "on",
                       "-ngl", "0", *theirs]
        environment = {key: value for key, value in os.environ.items() if key != "GGML_BACKEND_PATH"}
        with open(self.log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                            env=environment)
        deadline = time.time() + 120
        while True:
            try:
                if self.get("/health")["status"] == "ok":
                    return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.time() > deadline:
                    raise SystemExit(f"soak: {name}: the server did not start, see {self.log_path}")
                time.sleep(0.2)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}",
                                         json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.load(answer)

    def complete(self, request, slot=-1):
        return self.post("/completion", {
            "prompt": request["prompt"], "n_predict": request["n_predict"], "temperature": 0,
            "ignore_eos": True, "cache_prompt": True, "id_slot": slot})["content"]

    def cancel(self, request):
        body = json.dumps({"prompt": request["prompt"], "n_predict": 400, "stream": True,
                           "ignore_eos": True})
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            connection.sendall(
                f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body.encode())}\r\n\r\n{body}".encode())
            for _ in range(request["n_chunks"]):
                if not connection.recv(4096):
                    break

    def resident_mebibytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            text = log.read()
        return sorted({line.strip() for line in text.splitlines()
                       if any(word in line for word in BAD_WORDS)})


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
        answer = self.server.complete(request, slot)
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
        self.server.cancel(request)

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
    """Returns requests with answers, and what went wrong."""
    name = f"{'coded' if coded else 'stock'}-{'unified' if unified else 'streams'}"
    server = Server(options, coded, N_SLOTS, unified, name)
    requests = Requests(options.seed + (0 if unified else 1000))
    run = Soak(server)
    n_requests = options.requests
    end = time.time() + options.minutes * 60 / 2
    memory = []
    with concurrent.futures.ThreadPoolExecutor(N_SLOTS) as pool:
        pending = set()
        number = 0
        while (number < n_requests) if n_requests else (time.time() < end):
            while len(pending) < N_SLOTS and (not n_requests or number < n_requests):
                pending.add(pool.submit(run.run, requests.next(), number))
                number += 1
            done, pending = concurrent.futures.wait(
                pending, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                future.result()
            memory.append(server.resident_mebibytes())
        concurrent.futures.wait(pending)
    complaints = run.failures + server.stop()
    quarter = max(1, len(memory) // 4)
    early, late = max(memory[:2 * quarter]), max(memory[-quarter:])
    print(f"{name}: {number} requests {run.counts}, {len(run.answers)} answers; memory "
          f"{early:.0f} MiB in the first half, {late:.0f} MiB at the end", flush=True)
    if late > 1.05 * early + 16:
        complaints.append(f"memory grew from {early:.0f} to {late:.0f} MiB")
    for complaint in complaints:
        print(f"{name}: ERROR {complaint}", flush=True)
    return run.answers, complaints, number


def replay(options, coded, answers):
    server = Server(options, coded, 1, False, ("coded" if coded else "stock") + "-replay")
    different = sum(server.complete(request, 0) != answer for request, answer in answers)
    complaints = server.stop()
    for complaint in complaints:
        print(f"replay: ERROR {complaint}", flush=True)
    return different, complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--codebook", required=True)
    parser.add_argument("--minutes", type=float, default=60, help="of the coded soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="build/soak")
    options = parser.parse_args()
    options.out = os.path.abspath(options.out)
    options.requests = 0
    os.makedirs(options.out, exist_ok=True)
    complaints = []
    numbers = {}
    for coded in (True, False):
        total = different = 0
        for unified in (True, False):
            # Stock gets as many requests as the coded server managed in its time.
            options.requests = numbers.get(unified, 0)
            answers, wrong, numbers[unified] = soak(options, coded, unified)
            n_different, replay_wrong = replay(options, coded, answers)
            complaints += wrong + replay_wrong
            total += len(answers)
            different += n_different
        print(f"{'coded' if coded else 'stock'}: {different} of {total} answers differ from the "
              f"single slot's ({100 * different / max(total, 1):.2f} %)", flush=True)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
