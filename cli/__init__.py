"""The command line: one file a command; each parses, calls one function and prints."""

from __future__ import annotations

import os

# By default an OpenMP thread spins while it waits for the others. On a busy machine it thereby
# keeps the others from a core, and an epoch takes 20 to 50 times as long. A thread that sleeps at
# once takes as long to wake as a small operation: on two quiet cores a step of 400 spots takes 57
# ms, after a tenth of a millisecond of spinning 30; beside another such program 42 and 64. The
# runtime reads these variables when torch loads it, so they are set first; settings of the user
# take precedence.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # GNU (the wheels of torch)
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel, LLVM
