"""llama-server on a coded cache, started through `cqkv serve`."""

import os
import subprocess
import tempfile

from llama_client import LlamaServer

CQKV = os.environ["CQKV_PROGRAM"]
MODEL = os.environ["CQKV_TEST_MODEL"]
DATA = os.environ["CQKV_DATA"]

LONG_PROMPT = (
    "The history of the lighthouse begins with fires lit on hilltops. Later, fires were placed "
    "on platforms, and towers were built to carry them. A keeper lived beside the light and "
    "tended it through the night. Ships far out at sea could see it and steer by it. ")


class Server(LlamaServer):
    """cqkv serve with a codebook; `ours` are cqkv's own flags."""

    def __init__(self, codebook, folder, *arguments, ours=()):
        handle, log_path = tempfile.mkstemp(".log", "server-", folder)
        os.close(handle)
        super().__init__([CQKV, "serve", "-m", MODEL, "--kv-codebook", codebook, *ours, "--", "-t",
                          "2", "--no-warmup", "--slot-save-path", folder, *arguments], log_path)


def calibrate(folder, name, text="wikitext2-train-1200k.txt"):
    """A codebook that is small and quick, but learned: a server on it speaks English."""
    path = os.path.join(folder, name)
    subprocess.run([CQKV, "calibrate", "-q", "-m", MODEL, "-f", os.path.join(DATA, text), "-o",
                    path, "--config", "4c8b", "--weights", "uniform", "--n-tokens", "1024",
                    "-c", "512", "--max-iterations", "8"], check=True, timeout=600)
    return path
