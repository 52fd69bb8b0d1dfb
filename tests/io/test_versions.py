"""A file that is replaced while it is read is noticed."""

from __future__ import annotations

import os
import shutil

import pytest

from stflow_graph.errors import BadInput
from stflow_graph.io.versions import Versions, unchanged


def replace(file) -> None:
    other = file.with_name("other")
    other.write_text("new")
    os.utime(other, ns=(0, file.stat().st_mtime_ns))
    os.replace(other, file)


def grow(file) -> None:
    file.write_text("more")


def touch(file) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def remove(file) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [replace, grow, touch, remove])
def test_every_change_is_noticed(tmp_path, change):
    file = tmp_path / "file"
    file.write_text("old")
    versions = Versions(file)
    versions.check()
    change(file)
    with pytest.raises(BadInput, match=r"file: file: found (none any|another).*Fix: run the com"):
        versions.check()


def test_what_does_not_touch_the_content_passes(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with unchanged(file) as versions:
        file.chmod(0o600)
        os.link(file, tmp_path / "link")
        shutil.copy(file, tmp_path / "copy")
        assert file.read_text() == "old"
        assert len(versions.sha256(file)) == 64


def test_a_failure_that_follows_from_it_names_the_cause(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def fail() -> None:
        with unchanged(file):
            replace(file)
            raise RuntimeError("3 of 4 rows were written")

    with pytest.raises(BadInput, match="found another one than at first"):
        fail()
    with pytest.raises(RuntimeError, match="3 of 4"), unchanged(file):
        raise RuntimeError("3 of 4 rows were written")


@pytest.mark.parametrize("change", [replace, grow, touch, remove])
def test_of_a_folder_every_file_counts(tmp_path, change):
    file = tmp_path / "data.zarr/a/0.0"
    file.parent.mkdir(parents=True)
    file.write_text("old")
    (tmp_path / "data.zarr/zarr.json").write_text("{}")
    versions = Versions(tmp_path / "data.zarr")
    versions.check()
    change(file)
    with pytest.raises(BadInput, match=r"data.zarr: file: found another one than at first"):
        versions.check()


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(BadInput), unchanged(path):
            pass
