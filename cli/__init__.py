"""The command line: one file a command; each parses, calls one function and prints."""

from __future__ import annotations

import os

# By default an OpenMP thread spins while it waits for the others. On a busy machine it thereby
# keeps the others from a core, and an epoch takes 20 to 50 times as long. The runtime reads these
# variables when torch loads it, so they are set first; settings of the user take precedence.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # GNU (the wheels of torch)
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel, LLVM
