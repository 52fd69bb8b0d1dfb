"""Starting a command several times on this machine, as ``torchrun`` does."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from stflow_graph.parallel.ranks import RESUME, RankFailed


def launch(arguments: Sequence[str], n: int, n_threads: int) -> int:
    """Run this program in so many processes that share a command's work; return its exit code.

    ``torch.distributed``'s agent watches them: when one ends with an error the others are ended.

    Args:
        arguments: of the command line.
        n: number of processes.
        n_threads: of each, where the environment does not say.

    Raises:
        RankFailed: a signal ended one of them.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # this process does nothing else; what the agent says at length is said below in one line
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))
    config = LaunchConfig(
        1,
        1,
        n,
        logs_specs=DefaultLogsSpecs(),
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "stflow_graph_cli", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode  # it has told why
        name = signal.Signals(-failure.exitcode).name
        raise RankFailed(f"rank {rank} was ended by {name}. Fix: {RESUME}") from None
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
