"""llama-server on a coded cache, started through `cqkv serve`, and a client for it."""

import json
import os
import socket
import subprocess
import time
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


def calibrate(folder, name, text="wikitext2-train-1200k.txt"):
    """A codebook that is small and quick, but learned: a server on it speaks English."""
    path = os.path.join(folder, name)
    subprocess.run([CQKV, "calibrate", "-q", "-m", MODEL, "-f", os.path.join(DATA, text), "-o",
                    path, "--config", "4c8b", "--weights", "uniform", "--n-tokens", "1024",
                    "-c", "512", "--max-iterations", "8"], check=True, timeout=600)
    return path
