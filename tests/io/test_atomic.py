import contextlib
import errno
import os

import pytest

from stflow_graph.errors import BadInput, StorageFailed
from stflow_graph.io import atomic, renames
from stflow_graph.io.atomic import (
    atomic_file,
    check_name,
    folder_sha256,
    read_json,
    write_json,
)


def leftovers(folder) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_success_replaces_and_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_text() == "one"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync", "close", "replace", "open"])
def test_whichever_operation_fails_the_old_file_stays(tmp_path, monkeypatch, call, number):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            file.truncate()
            file.write(b"er")

    monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(StorageFailed, match=f"out.txt: cannot write: {os.strerror(number)}. Not"):
        write()
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_errors_of_an_input_are_not_those_of_the_output(tmp_path):
    def read_in_body() -> None:
        with atomic_file(tmp_path / "out") as file:
            file.write(b"new")
            raise OSError(errno.EIO, "Input/output error", "input.h5")

    with pytest.raises(OSError, match="input.h5"):
        read_in_body()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_comes_before_what_the_body_makes_of_it(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with atomic_file(tmp_path / "out") as file:
            monkeypatch.setattr(os, "pwrite", fail)
            file.write(b"new")
            raise BadInput("out", "content", "nothing", "something")

    with pytest.raises(StorageFailed, match="out: cannot write: No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_a_write_is_not_lost_in_the_library_that_writes(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        monkeypatch.undo()
        raise SystemExit(143)

    def write() -> None:
        with atomic_file(tmp_path / "out") as file:
            monkeypatch.setattr(os, "pwrite", stop)
            with contextlib.suppress(BaseException):
                file.write(b"new")

    with pytest.raises(SystemExit):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/x", "File exists|Not a directory"),
        ("x" * 300, "File name too long"),
        ("link/x", "File exists|No such file"),
    ],
)
def test_paths_that_cannot_be_are_bad_input(tmp_path, name, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(BadInput, match=f"output: found ({reason}|Too many levels).*, expected a"):
        write_json(tmp_path / name, 1)


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


@pytest.mark.parametrize("name", ["é", "切片 3", "S1 (2)", "S1,2", "a[b]", "it's", "50%", "_x"])
def test_names_of_any_language_with_blanks_and_brackets_are_file_names(tmp_path, name):
    assert check_name(name, "splits.csv") == name
    write_json(tmp_path / f"{name}.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/x", "a/b", "a\0", "a\n", "", ".x", "x" * 300, "é" * 120, "a\u202eb", "\ud800"),
        *(
            "a\\b",
            "C:x",
            "a*",
            "a?",
            "a|b",
            "<a>",
            "--out",
            "=1+1",
            "+1",
            "@x",
            "~",
            " a",
            "a ",
            "a.",
        ),
    ],
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(BadInput):
        check_name(name, "splits.csv")


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a folder"), atomic_file(tmp_path):
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
