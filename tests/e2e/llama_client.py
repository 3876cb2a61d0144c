"""A llama-server process on a port of its own, and a client for it: what the tests of
server features and the soak test (scripts/soak.py) share. Nothing of cqkv is here."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LlamaServer:
    """Starts `command` with host and port added; its output goes to a file."""

    def __init__(self, command, log_path, environment=None):
        self.port = free_port()
        self.log_path = log_path
        self.log = open(log_path, "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=self.log,
            stderr=subprocess.STDOUT, env=environment)
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
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.load(answer)

    def complete(self, prompt, slot, n_predict, **more):
        return self.post("/completion", {"prompt": prompt, "id_slot": slot, "temperature": 0,
                                         "n_predict": n_predict, "cache_prompt": True, **more})

    def cancel(self, prompt, n_predict, n_chunks):
        """Goes away after some chunks of a streamed answer; returns the first."""
        body = json.dumps({"prompt": prompt, "n_predict": n_predict, "stream": True,
                           "ignore_eos": True}).encode()
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            connection.sendall(
                b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            first = connection.recv(4096)
            for _ in range(n_chunks - 1):
                if not connection.recv(4096):
                    break
            return first

    def log_text(self):
        self.log.flush()
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.log.close()
