"""Where results cannot be written is told before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stflow_graph.errors import BadInput
from stflow_graph.io.outputs import check_output_file, check_output_folder


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """Paths where no folder can be, nor a file in one."""
    file, loop, dangling = (tmp_path / name for name in ("file", "loop", "dangling"))
    file.touch()
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    return {
        "a file": file,
        "a path below a file": file / "a/b",
        "such file or dir": dangling / "a",
        "Too many levels": loop,
        "a name too long": tmp_path / ("x" * 300),
        "name too long": tmp_path / "new" / ("é" * 150) / "b",
        "No such file": Path("/proc/results/a"),
        "file": tmp_path / "fifo",
    }


def test_a_folder_that_cannot_be_is_refused_in_one_line(places):
    for message, place in places.items():
        if "/proc" in str(place) and not place.parents[1].is_dir():
            continue  # another system
        for check, path in ((check_output_folder, place), (check_output_file, place / "a.csv")):
            with pytest.raises(BadInput) as caught:
                check(path)
            assert str(caught.value).startswith(f"{path}: output: found ")
            text = str(caught.value)
            assert message in text
            assert "\n" not in text
            assert len(text) < 900


def test_a_place_for_output_stays_as_it_is(tmp_path):
    for path in (tmp_path, tmp_path / "new/folder"):
        assert check_output_folder(path) == path
        assert check_output_file(path / "a.csv") == path / "a.csv"
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="found a folder, expected a file name"):
        check_output_file(tmp_path)
    with pytest.raises(BadInput, match="a shorter name"):
        check_output_file(tmp_path / ("x" * 230 + ".csv"))  # no room for the temporary name
