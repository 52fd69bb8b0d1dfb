"""A disk that is really full: a small file system in memory, at shares of what a command needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_commands import COMMANDS, NAMES, Trials, errors

_PAGE = os.sysconf("SC_PAGE_SIZE")
SHARES = (0.1, 0.4, 0.8, 0.97)


def mount(folder: Path, n_bytes: int, *, again: bool = False) -> None:
    """Mount a file system of so many bytes, or give one that is there another size."""
    options = f"size={n_bytes}" + (",remount" if again else "")
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )


def can_mount(folder: Path) -> bool:
    try:
        mount(folder, 2**20)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@pytest.fixture
def disk(trials: Trials, tmp_path: Path) -> Iterator[Trials]:
    """The trials, whose output is on a file system of its own."""
    if os.geteuid() or not can_mount(tmp_path):
        pytest.skip("needs the right to mount a file system")
    before, trials.out = trials.out, tmp_path
    mount(tmp_path, 2**30)
    yield trials
    trials.out = before
    subprocess.run(["umount", str(tmp_path)], check=True)


def used(folder: Path) -> int:
    """Return the bytes of a file system that are in use."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def emptied(trials: Trials, name: str) -> None:
    for entry in trials.out.iterdir():
        subprocess.run(["rm", "-rf", str(entry)], check=True)
    COMMANDS[name].before(trials.inputs, trials.out)


def check_full(disk: Trials, name: str, shares: tuple[float, ...] = SHARES) -> int:
    """Run a command on disks too small for it, then on a large one; return how many were full."""
    command, n_full = COMMANDS[name], 0
    emptied(disk, name)
    old, at_first = disk.files(), used(disk.out)
    assert disk.run(command)["code"] == 0
    new = disk.files()
    changed = [disk.out / file for file, content in new.items() if content != old.get(file)]
    # what is replaced stays until its successor is whole
    pages = sum(-(-file.stat().st_size // _PAGE) for file in changed)
    for share in shares:
        mount(disk.out, 2**30, again=True)
        emptied(disk, name)
        mount(disk.out, max(at_first + int(share * pages) * _PAGE, _PAGE), again=True)
        found = disk.run(command)
        if found["code"]:
            n_full += 1
            (line,) = errors(found)
            assert found["code"] == 74, (share, found)
            assert line.startswith(f"error: {disk.out}"), line
            assert ": No space left on device" in line
            assert not list(disk.out.rglob(".*.stflow-*")), share
        for file, content in disk.files().items():
            interim = file.endswith(("config.toml", "provenance.json"))
            assert interim or content in (old.get(file), new.get(file)), (share, file)
        mount(disk.out, 2**30, again=True)
        again = disk.run(command)
        assert (again["code"], errors(again)) == (0, []), (share, again)
        assert disk.files() == new, share
    return n_full


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_disks_too_small(disk, name, capsys):
    n_full = check_full(disk, name)
    with capsys.disabled():
        print(f"\n{name}: {n_full} of {len(SHARES)} were full")
    assert n_full


@pytest.mark.parametrize("name", ["embed again", "train"])
def test_a_disk_too_small(disk, name):
    assert check_full(disk, name, (0.4,))
