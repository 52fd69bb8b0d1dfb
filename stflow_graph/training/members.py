"""Members trained side by side: on a CPU each in a process of one thread.

The operations of a small network are too small for several threads, and members do not depend on
each other. A process trains one member and leaves the state of its loop (``training.loop``); then
the loop is run here, resumes from that state, and has nothing left to do. A process that fails is
thus no harm: its member goes on here, and what made it fail is raised here if it happens again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from stflow_graph.io.process import available_memory
from stflow_graph.training.loop import EpochRecord, Fitted

logger = logging.getLogger(__name__)

# trains a member; it calls back after every epoch with the history so far
Training = Callable[[Callable[[list[EpochRecord]], None]], Fitted]
_SET_PDEATHSIG = 1
_SMALL = 2048  # spots of a step of which a few threads do not take less time than one


def n_processes(n_members: int, n_spots: int, n_numbers: int, device: torch.device) -> int:
    """Return how many members to train at a time; 0: one after the other, here.

    Args:
        n_members: of the fold.
        n_spots: of the largest step.
        n_numbers: of each of its spots that are in memory at once.
        device: of the networks.
    """
    n_threads = torch.get_num_threads()
    if sys.platform != "linux" or device.type != "cpu":  # a GPU does not survive a fork
        return 0
    if min(n_members, n_threads) < 2 or (n_threads > 2 * n_members and n_spots > _SMALL):
        return 0
    n = min(n_members, n_threads)
    available = available_memory()
    if available is not None:
        n = min(n, available // 2 // (4 * n_spots * n_numbers))
    return max(1, n)


def train_members(
    trainings: Sequence[Training],
    report: Callable[[int, list[EpochRecord]], None],
    n_at_a_time: int,
) -> list[Fitted]:
    """Train all members; those of processes with one thread each, however many at a time.

    Args:
        trainings: of each member, which resumes from its state.
        report: called after every epoch with the member and its history.
        n_at_a_time: number of processes; 0: all members are trained here, by all threads.

    Raises:
        Diverged: a loss is not finite.
    """
    if not n_at_a_time:
        return [train(partial(report, i)) for i, train in enumerate(trainings)]
    with _threads(1):  # results must not depend on how many processes there is room for
        _train_ahead(trainings, report, n_at_a_time)
        return [train(partial(report, i)) for i, train in enumerate(trainings)]


def _train_ahead(
    trainings: Sequence[Training],
    report: Callable[[int, list[EpochRecord]], None],
    n_at_a_time: int,
) -> None:
    waiting, running = list(enumerate(trainings)), dict[Connection, tuple[int, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < n_at_a_time:
                member, train = waiting.pop(0)
                connection, process = _start(train)
                running[connection] = member, process
            ready = wait(list(running))
            for connection in [each for each in running if each in ready]:
                member, process = running[connection]
                try:
                    history = connection.recv()
                except EOFError:
                    process.join()
                    connection.close()
                    del running[connection]
                    status = process.exitcode or 0
                    if status < 0:
                        logger.warning(
                            "member %d: its process was ended by signal %d, which the system does "
                            "where memory is short: the member goes on after the others",
                            member,
                            -status,
                        )
                    continue
                report(member, history)
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _start(train: Training) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(train, theirs, os.getpid()), daemon=True)
    with warnings.catch_warnings():
        # of threads that hold locks: those here wait, and what they hold no loop takes
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return ours, process


def _run(train: Training, connection: Connection, parent: int) -> None:
    """Train a member in a process of its own, which ends with its parent and says nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    status = 1
    try:
        if os.getppid() == parent:
            torch.set_num_threads(1)
            train(connection.send)
            status = 0
    finally:
        os._exit(status)  # what made it fail is found and told by the parent


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
