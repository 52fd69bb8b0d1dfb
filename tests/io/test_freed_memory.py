"""Freed memory is handed out again without faulting its pages in, and given back at the end."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

_VERSION = platform.libc_ver()[1].split(".")[:2]
GLIBC = tuple(int(part) for part in _VERSION if part.isdigit())
CODE = """
import resource, torch
from pathlib import Path
from stflow_graph.io.freed_memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

faults()
usual, start = faults(), resident()
with freed_memory_kept():
    faults()
    kept, most = faults(), resident()
    with freed_memory_kept(2**20):
        within = faults()
    faults()
    again = faults()
print(usual, kept, within, again, most - start, resident() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_pages_stay_until_the_end_of_the_outermost_body():
    command = [sys.executable, "-c", CODE]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    usual, kept, within, again, more, after = map(int, run.stdout.split())
    pages = 10 * 2**26 // resource.getpagesize()
    if usual < pages / 2 or GLIBC < (2, 35):
        pytest.skip("huge pages, or another C library, or an old one")
    assert max(kept, again) < pages / 20
    assert more > 2**26 * 0.9
    assert after < 2**24
