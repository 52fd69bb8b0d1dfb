"""What is swept: leftovers of this place's dead processes, and what nobody has touched for long."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from stflow_graph.io import process, temporaries
from stflow_graph.io.atomic import atomic_file, write_json
from stflow_graph.io.process import Place, is_alive, start_of
from stflow_graph.io.temporaries import MAX_AGE, sweep_stale, temporary_beside

DEAD = 2**22 + 1  # above all PIDs of Linux
HERE = Place.here()
ELSEWHERE = {
    "another host": Place("elsewhere", HERE.boot, HERE.namespace),
    "another boot of another host": Place("elsewhere", "another", HERE.namespace),
    "another container": Place(HERE.host, HERE.boot, "pid:[1]"),
    "another container with a name": Place("elsewhere", HERE.boot, "pid:[1]"),
}


def name_of(place: Place | None, pid: int = DEAD, ending: str = "tmp") -> str:
    """As this version names them, or as those did that knew no places."""
    if place is None:
        return f".x.h5.stflow-{pid}-0123abcd.{ending}"
    return f".x.h5.stflow-{place.token}-{pid}-012abc.{ending}"


@pytest.fixture
def later(monkeypatch):
    """Moves this machine's clock and the file system's."""
    now = time.time()

    def move(seconds: float, disk: float | None = None) -> None:
        monkeypatch.setattr(temporaries.time, "time", lambda: now + seconds)
        moved = now + (seconds if disk is None else disk)
        monkeypatch.setattr(temporaries, "_clock_of", lambda folder: moved)

    return move


def swept(folder, name: str) -> bool:
    (folder / name).write_text("")
    write_json(folder / "a.json", {"a": 1})
    there = (folder / name).exists()
    (folder / name).unlink(missing_ok=True)
    return not there


def test_temporaries_of_dead_processes_here_are_swept_and_others_kept(tmp_path):
    assert swept(tmp_path, name_of(HERE))
    assert not swept(tmp_path, name_of(HERE, os.getpid()))
    assert not swept(tmp_path, ".x.h5.other.tmp")
    assert not swept(tmp_path, ".x.h5.stflow-zzzzzz-000000-000000-1-012abc.tmp")


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE)
def test_those_of_other_places_are_kept_for_seven_days(tmp_path, later, place):
    name = name_of(place)
    assert not swept(tmp_path, name)
    later(MAX_AGE - 60)
    assert not swept(tmp_path, name)
    later(MAX_AGE + 60)
    assert swept(tmp_path, name)
    later(MAX_AGE + 60, disk=60)  # this machine's clock is wrong
    assert not swept(tmp_path, name)
    later(60, disk=MAX_AGE + 60)
    assert not swept(tmp_path, name)


def test_those_of_before_this_machine_started_are_swept(tmp_path, monkeypatch, later):
    name = name_of(Place(HERE.host, "before", HERE.namespace))
    later(100)
    monkeypatch.setattr(temporaries, "seconds_since_boot", lambda: 200.0)
    assert not swept(tmp_path, name)  # of another machine with this name, in spite of it
    monkeypatch.setattr(temporaries, "seconds_since_boot", lambda: 50.0)
    assert swept(tmp_path, name)


def test_old_names_have_no_place_and_are_kept_for_seven_days(tmp_path, later):
    assert not swept(tmp_path, name_of(None))
    later(MAX_AGE + 60)
    assert swept(tmp_path, name_of(None))
    assert not swept(tmp_path, name_of(None, os.getpid()))


def test_a_folder_is_as_old_as_its_newest_file(tmp_path, later):
    folder = tmp_path / name_of(None)
    (folder / "deep").mkdir(parents=True)
    os.utime(folder, (0, 0))
    later(MAX_AGE + 60)
    (folder / "deep/a").write_text("")
    os.utime(folder / "deep/a", (now := time.time(), now))
    sweep_stale(tmp_path)
    assert (folder / "deep/a").exists()


@pytest.mark.parametrize("place", [*ELSEWHERE.values(), None])
def test_a_folder_set_aside_elsewhere_returns_if_nothing_follows(tmp_path, later, place):
    aside, path = tmp_path / name_of(place, ending="old"), tmp_path / "x.h5"
    aside.mkdir()
    (aside / "a").write_text("old")
    sweep_stale(tmp_path)
    assert not path.exists()
    later(660)
    sweep_stale(tmp_path)
    assert (path / "a").read_text() == "old"
    path.rename(aside)
    path.mkdir()
    sweep_stale(tmp_path)  # its successor came: there is no hurry
    assert (aside / "a").read_text() == "old"


def test_names_stay_within_the_limit_of_file_systems(tmp_path, monkeypatch):
    monkeypatch.setattr(temporaries.os, "getpid", lambda: 2**22 - 1)
    for name in ("x" * 207, "é" * 103):
        assert len(os.fsencode(temporary_beside(tmp_path / name).name)) <= 255
        with atomic_file(tmp_path / name) as file:
            file.write(b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_a_place_that_cannot_be_read_is_no_other_processs(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_PROC", tmp_path)
    process._boot.cache_clear()
    try:
        hidden = Place.here()
    finally:
        process._boot.cache_clear()
    assert hidden.host == HERE.host
    assert len({hidden.boot, hidden.namespace, HERE.boot, HERE.namespace}) >= 3
    assert start_of(os.getpid()) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_told_from_the_next_with_its_number():
    assert is_alive(os.getpid())
    assert start_of(os.getpid()) == start_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert is_alive(child.pid)
        assert start_of(child.pid) not in (None, start_of(os.getppid()))
        child.kill()
        time.sleep(0.2)
        assert not is_alive(child.pid)  # though nobody has waited for it
    assert not is_alive(DEAD)
    assert start_of(DEAD) is None
