"""That the KV device's library exports its entry point and nothing else: a host that links cqkv
itself keeps its own copy.

    exports_test.py LIBRARY
"""

import subprocess
import sys

symbols = subprocess.run(["nm", "-D", "--defined-only", sys.argv[1]], capture_output=True, text=True,
                         check=True).stdout
names = [line.split()[-1] for line in symbols.splitlines()]
if names != ["ggml_backend_init"]:
    sys.exit(f"exports {len(names)} symbols, want ggml_backend_init alone: {names[:10]}")
