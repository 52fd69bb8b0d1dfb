import errno
import os

import pytest

from stflow_graph.errors import BadInput, StorageFailed
from stflow_graph.io import atomic, renames
from stflow_graph.io.atomic import (
    atomic_path,
    check_name,
    folder_sha256,
    read_json,
    write_json,
)


def leftovers(folder) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_success_replaces_and_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "one"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_whichever_operation_fails_the_old_file_stays(tmp_path, monkeypatch, call):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(StorageFailed, match="No space left"), atomic_path(path) as temporary:
        temporary.write_bytes(b"new") if call != "open" else None
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_temporaries_of_dead_processes_are_swept_and_others_kept(tmp_path):
    dead = tmp_path / f".x.h5.stflow-{2**22 + 1}-0123abcd.tmp"
    alive = tmp_path / f".x.h5.stflow-{os.getpid()}-0123abcd.tmp"
    foreign = tmp_path / ".x.h5.other.tmp"
    for file in (dead, alive, foreign):
        file.write_text("")
    write_json(tmp_path / "a.json", {"a": 1})
    assert not dead.exists()
    assert alive.exists()
    assert foreign.exists()


def test_json_is_read_as_written_and_refused_when_it_is_not_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "é"})
    assert read_json(tmp_path / "a.json") == {"b": [1, None], "a": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match="expected JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(BadInput, match="errno 2"):
        read_json(tmp_path / "none.json")
    with pytest.raises(BadInput, match="a folder"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\0", "a\n", "", ".x", "x" * 300])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(BadInput):
        check_name(name, "splits.csv")


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a folder"), atomic_path(tmp_path):
        pass


def test_a_folders_hash_tells_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_bytes(b"1")
    first = folder_sha256(tmp_path)
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    second = folder_sha256(tmp_path)
    (tmp_path / "a/y").write_bytes(b"2")
    assert len({first, second, folder_sha256(tmp_path)}) == 3
    (tmp_path / "a/y").write_bytes(b"1")
    (tmp_path / "a/y").rename(tmp_path / "a/x")
    assert folder_sha256(tmp_path) == first
