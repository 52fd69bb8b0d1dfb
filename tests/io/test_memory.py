from __future__ import annotations

import pytest

from stflow_graph.io import process
from stflow_graph.io.process import available_memory

GB = 2**30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of 8 GB, of which 6 are free; returns what limits the memory of a control group."""
    monkeypatch.setattr(process, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(process, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    text = f"MemTotal: {8 * GB // 1024} kB\nMemAvailable:    {6 * GB // 1024} kB\n"
    (tmp_path / "proc/meminfo").write_text(text)

    def limit(place: str, version: int, most: object, used: int = 0, cached: int = 0) -> None:
        lines = {1: f"4:memory:{place}\n1:cpu:/\n", 2: f"0::{place}\n"}
        (tmp_path / "proc/self/cgroup").write_text(lines[version])
        names = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.max", "memory.current", "inactive_file"),
        }[version]
        folder = tmp_path / "cgroup" / ("memory" if version == 1 else "") / place.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\nfile 9\n")

    return limit


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_memory_counts(system, version):
    assert available_memory() == 6 * GB
    system("/job", version, 2 * GB, used=GB)
    assert available_memory() == GB
    system("/job", version, 2 * GB, used=2 * GB, cached=GB // 2)  # which can be taken back
    assert available_memory() == GB // 2
    system("/job", version, GB, used=2 * GB)
    assert available_memory() == 0
    system("/job", version, 100 * GB)
    assert available_memory() == 6 * GB


def test_so_does_one_of_a_group_above(system):
    system("/job", 2, 3 * GB)
    system("/job/step", 2, "max")
    assert available_memory() == 3 * GB


def test_groups_that_cannot_be_read_limit_nothing(system, tmp_path):
    (tmp_path / "proc/self/cgroup").write_text("0::/elsewhere\n")
    assert available_memory() == 6 * GB
    (tmp_path / "proc/meminfo").unlink()
    assert available_memory() is None
