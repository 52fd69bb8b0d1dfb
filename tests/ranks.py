"""Ranks of one command in threads, and functions run by several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import HashStore

from stflow_graph.parallel.ranks import Ranks

TESTS = Path(__file__).parent


def in_threads(n: int, do: Callable[[Ranks], Any]) -> list[Any]:
    """Call a function as each of n ranks at the same time; return what they return or raise."""
    store, found = HashStore(), [None] * n

    def run(rank: int) -> None:
        try:
            found[rank] = do(Ranks(store, rank, n))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(n: int, arguments: list[str], **more: str) -> list[subprocess.Popen[str]]:
    """Start Python n times with the variables that torchrun sets."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            | {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
            | more,
        )
        for rank in range(n)
    ]
