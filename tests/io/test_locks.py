"""One process at a time holds a lock, and who holds it is said."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from stflow_graph.errors import StorageFailed
from stflow_graph.io import locks
from stflow_graph.io.locks import Owner, check_unlocked, lock
from stflow_graph.io.process import Place

WORK = "another job"
DEAD = 2**22 + 1


@pytest.fixture(params=["links", "no links"])
def file(request, tmp_path, monkeypatch):
    """A lock, on a file system with hard links and on one without."""
    if request.param == "no links":

        def fail(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(locks.os, "link", fail)
    return tmp_path / "folder" / ".lock"


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(file, **changes) -> Owner:
    """Write a lock of this process, with changes."""
    owner = dataclasses.replace(Owner.this(), **changes)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_a_lock_is_held_once_and_leaves_nothing(file):
    for _ in range(2):
        with lock(file, WORK):
            assert names(file.parent) == [".lock"]
            with (
                pytest.raises(StorageFailed, match="another job is writing there"),
                lock(file, WORK),
            ):
                pass
            with pytest.raises(StorageFailed, match=r"folder: another job is .*Fix: wait for it"):
                check_unlocked(file, WORK)
        assert names(file.parent) == []
        check_unlocked(file, WORK)


def test_the_message_names_the_owner(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/stflow-graph", "train", "--out", "a b\x1b[2J"])
    place = Place.here()
    with lock(file, WORK):
        with pytest.raises(StorageFailed) as caught, lock(file, WORK):
            pass
        stored = json.loads(file.read_text())
    text = str(caught.value)
    assert text.isprintable()
    assert f"PID {os.getpid()} on '{place.host}' since '" in text
    assert "stflow-graph train --out" in text
    assert "taken over" not in text  # it is seen to be alive
    assert (stored["boot"], stored["namespace"]) == (place.boot, place.namespace)


@pytest.mark.parametrize("change", [{"pid": DEAD}, {"started": "1"}], ids=["gone", "reused"])
def test_a_lock_of_a_dead_process_is_taken_over_at_once(file, change):
    write(file, **change)
    check_unlocked(file, WORK)
    with lock(file, WORK):
        assert Owner.of(file).pid == os.getpid()
    assert names(file.parent) == []


@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere"},
        {"namespace": "pid:[1]", "pid": DEAD},
        {"boot": "another", "pid": DEAD},
        {"started": ""},
    ],
    ids=["host", "container", "boot", "start unknown"],
)
def test_a_lock_of_a_process_that_cannot_be_seen_is_kept_until_it_is_silent(
    file, monkeypatch, change
):
    write(file, **change)
    with ticking(file) as ticks:
        with (
            pytest.raises(StorageFailed, match="taken over 10 min after its owner's last sign of"),
            lock(file, WORK),
        ):
            pass
        assert ticks
    # silent now
    start = time.monotonic()
    monkeypatch.setattr(
        locks, "is_older", lambda path, seconds: seconds <= time.monotonic() - start + 599.5
    )
    with lock(file, WORK):
        assert Owner.of(file).host == Place.here().host
        assert time.monotonic() - start >= 0.5


@contextlib.contextmanager
def ticking(file):
    """Give signs of life in another's place."""
    ticks: list[int] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.2):
            ticks.append(len(ticks))
            os.utime(file)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield ticks
    finally:
        done.set()
        thread.join()


def test_the_lock_of_a_living_process_is_not_taken_over_however_old(file, monkeypatch):
    monkeypatch.setattr(locks, "is_older", lambda path, seconds: True)
    with lock(file, WORK):
        os.utime(file, (0, 0))
        with pytest.raises(StorageFailed), lock(file, WORK):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "[" * 9999, "9" * 70_000])
def test_a_lock_that_names_nobody_is_kept_until_it_is_old(file, content, monkeypatch):
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(StorageFailed, match=r"a process that \.lock does not name"):
        check_unlocked(file, WORK)
    monkeypatch.setattr(locks, "is_older", lambda path, seconds: True)
    with lock(file, WORK):
        assert Owner.of(file) is not None


def test_the_time_of_a_lock_is_renewed(file, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    with lock(file, WORK):
        os.utime(file, (0, 0))
        for _ in range(200):
            if file.stat().st_mtime > 0:
                break
            time.sleep(0.02)
        assert file.stat().st_mtime > 0


def test_a_lock_that_another_has_taken_over_is_left_to_it(file):
    with lock(file, WORK):
        other = write(file, host="elsewhere")
    assert Owner.of(file) == other


def test_a_process_waits_for_another(file):
    code = (
        "import sys, time; from pathlib import Path; from stflow_graph.io.locks import lock\n"
        "with lock(Path(sys.argv[1]), ''):\n    print('held', flush=True); time.sleep(0.5)"
    )
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StorageFailed, match=f"PID {child.pid} on"), lock(file, WORK):
            pass
        with lock(file, WORK, wait=60):
            assert Owner.of(file).pid == os.getpid()


def _contend(file, counter, n_turns: int) -> None:
    for _ in range(n_turns):
        with lock(file, WORK, wait=60):
            value = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(value + 1))


def test_of_many_processes_one_at_a_time_has_it_also_after_a_kill(tmp_path):
    file, counter = tmp_path / ".lock", tmp_path / "counter"
    counter.write_text("0")
    write(file, pid=DEAD)  # all of them see that it is to be taken over
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_contend, args=(file, counter, 25)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert counter.read_text() == "100"
    assert names(tmp_path) == ["counter"]
