"""Members trained by processes of their own, and what becomes of those that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from linear import (
    CPU,
    configured,
    fit_fold,
    linear_slide,
    same_weights,
)

from stflow_graph.errors import Diverged
from stflow_graph.training import members as module
from stflow_graph.training.fold import FittedFold
from stflow_graph.training.loop import EpochRecord, Fitted
from stflow_graph.training.members import n_processes, train_members

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="members run in one process")
THREADS = 4


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    assert torch.get_num_threads() == THREADS
    torch.set_num_threads(before)


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 0.0, 0.0, 0.0, 1, 0.0, 0.0)


class Member:
    """A training of two epochs that leaves its state in a file, and counts how often it runs."""

    def __init__(self, folder: Path, number: int, act: Callable[[], None] = lambda: None) -> None:
        self.state, self.runs, self.act = folder / f"s{number}", folder / f"r{number}", act

    def __call__(self, report: Callable[[list[EpochRecord]], None]) -> Fitted:
        with self.runs.open("a") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
        history = [record(i + 1) for i in range(len(self.done))]
        while len(history) < 2:
            if not history:
                self.act()
            history.append(record(len(history) + 1))
            self.state.write_text("x" * len(history))
            report(history)
        return Fitted({}, history)

    @property
    def done(self) -> str:
        return self.state.read_text() if self.state.exists() else ""

    @property
    def places(self) -> list[tuple[int, int]]:
        """The process and the number of threads of each run."""
        lines = [line.split() for line in self.runs.read_text().splitlines()]
        return [(int(process), int(threads)) for process, threads in lines]


def train(trainings: list[Member], n: int) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    fitted = train_members(trainings, lambda i, history: told.append((i, len(history))), n)
    assert [len(result.history) for result in fitted] == [2] * len(trainings)
    return told


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_epoch_is_told_once_and_trained_by_a_process_of_one_thread(tmp_path, n):
    trainings = [Member(tmp_path, i) for i in range(5)]
    told = train(trainings, n)
    assert sorted(told) == [(i, epoch) for i in range(5) for epoch in (1, 2)]
    processes = [[place[0] for place in member.places] for member in trainings]
    assert all(second == os.getpid() for _, second in processes)
    assert len({first for first, _ in processes} - {os.getpid()}) == 5
    assert {place[1] for member in trainings for place in member.places} == {1}


def test_members_are_trained_here_with_all_threads(tmp_path):
    trainings = [Member(tmp_path, i) for i in range(2)]
    assert train(trainings, 0) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [member.places for member in trainings] == [[(os.getpid(), THREADS)]] * 2


def in_a_process(act: Callable[[], None]) -> Callable[[], None]:
    parent = os.getpid()
    return lambda: act() if os.getpid() != parent else None


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("act", [killed, out_of_memory])
def test_a_member_whose_process_ends_goes_on_here(tmp_path, act, capfd, caplog):
    trainings = [Member(tmp_path, i, in_a_process(act) if i == 1 else lambda: None) for i in (0, 1)]
    told = train(trainings, 2)
    assert sorted(told) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert trainings[1].places[-1] == (os.getpid(), 1)
    assert capfd.readouterr() == ("", "")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (act is killed)
    assert all(line.startswith("member 1: its process was ended by signal 9") for line in said)


def test_an_error_that_comes_again_is_raised_here(tmp_path, capfd):
    def diverge() -> None:
        raise Diverged("epoch 1")

    trainings = [Member(tmp_path, 0), Member(tmp_path, 1, diverge)]
    with pytest.raises(Diverged, match="epoch 1"):
        train(trainings, 2)
    assert trainings[0].done == "xx"
    assert capfd.readouterr() == ("", "")


def test_processes_end_with_an_error_of_the_report(tmp_path):
    children: list[int] = []

    def slow() -> None:
        time.sleep(60)

    def report(member: int, history: list[EpochRecord]) -> None:
        while not trainings[1].runs.exists():
            time.sleep(0.01)
        children.extend(place[0] for place in trainings[1].places)
        raise KeyboardInterrupt

    trainings = [Member(tmp_path, 0), Member(tmp_path, 1, slow)]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_members(trainings, report, 2)
    assert time.monotonic() - began < 30
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


KILLED = """
import os, sys, time
from stflow_graph.training.members import train_members
def train(report):
    open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
    time.sleep(60)
train_members([train, train], lambda *told: None, 2)
"""


def test_processes_end_with_their_parent(tmp_path):
    file = tmp_path / "processes"
    parent = subprocess.Popen([sys.executable, "-c", KILLED, file])
    while not file.exists() or len(file.read_text().split()) < 2:
        time.sleep(0.05)
        assert parent.poll() is None
    parent.kill()
    parent.wait()
    for child in map(int, file.read_text().split()):
        for _ in range(100):
            status = Path(f"/proc/{child}/stat")
            if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        else:
            raise AssertionError(f"process {child} goes on")


def test_how_many_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 8 * 10**9)
    assert n_processes(3, 400, 100, CPU) == 3
    assert n_processes(8, 400, 100, CPU) == THREADS
    assert n_processes(4, 10**6, 100, CPU) == 4
    assert n_processes(1, 400, 100, CPU) == 0
    assert n_processes(4, 400, 100, torch.device("cuda")) == 0
    torch.set_num_threads(16)
    assert n_processes(4, 400, 100, CPU) == 4
    assert n_processes(4, 8192, 100, CPU) == 0  # large products have work for all threads
    torch.set_num_threads(THREADS)
    assert n_processes(4, 10_000, 50_000, CPU) == 2  # 2 GB each, of half the memory
    assert n_processes(4, 10_000, 500_000, CPU) == 1


def test_the_memory_that_is_available():
    assert 2**26 < module.available_memory() < 2**50


@pytest.mark.parametrize("kind", ["field", "two-stage", "graph"])
def test_a_fold_is_the_same_however_many_at_a_time(kind, tmp_path, monkeypatch):
    slides = [linear_slide(name, n) for name, n in (("A", 20), ("B", 25), ("C", 18))]
    config = configured(kind, train__members=3)
    torch.set_num_threads(1)

    def fitted(folder: str, n: int) -> tuple[FittedFold, list[tuple[int, list[int]]]]:
        told: list[tuple[int, list[int]]] = []
        monkeypatch.setattr(f"{module.__package__}.fold.n_processes", lambda *_: n)
        result = fit_fold(
            slides,
            config,
            tmp_path / folder,
            fold=0,
            report=lambda histories, i: told.append((i, [len(h) for h in histories])),
        )
        return result, told

    one, told = fitted("one", 0)
    assert [member for member, _ in told] == [0, 0, 1, 1, 2, 2]
    several, told = fitted("several", 3)
    assert sorted(member for member, _ in told) == [0, 0, 1, 1, 2, 2]
    assert told[-1][1] == [2, 2, 2]
    assert same_weights(one.weights, several.weights)
    assert [each.epoch for each in one.best] == [each.epoch for each in several.best]
    torch.set_num_threads(THREADS)
