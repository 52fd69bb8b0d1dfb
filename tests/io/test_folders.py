from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stflow_graph.errors import BadInput, StorageFailed
from stflow_graph.io import renames
from stflow_graph.io.atomic import write_json
from stflow_graph.io.folders import FolderKind, atomic_folder, marked
from stflow_graph.io.process import Place
from stflow_graph.io.renames import put, set_aside
from stflow_graph.io.temporaries import sweep_stale, temporary_beside

DEAD = 2**22 + 1  # above all PIDs of Linux
OURS = marked("a box", "box.json", ("box/",), {"box.json", "a"})


def write_box(path: Path, content: str) -> None:
    with atomic_folder(path, OURS) as temporary:
        (temporary / "a").write_text(content)
        write_json(temporary / "box.json", {"format": "box/1"})


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail(number: int):
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.fixture(params=["exchange", "two steps"])
def file_system(request, monkeypatch):
    """One that exchanges two names in one step, and one that cannot."""
    if request.param == "two steps":
        monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    return request.param


def test_a_folder_is_old_or_new(tmp_path, file_system):
    path = tmp_path / "deep" / "box"
    for content in ("one", "two"):
        write_box(path, content)
        assert (path / "a").read_text() == content
    with pytest.raises(ZeroDivisionError), atomic_folder(path, OURS) as temporary:
        (temporary / "a").write_text(str(1 / 0))
    assert (path / "a").read_text() == "two"
    assert entries(path.parent) == ["box"]


def test_an_empty_folder_is_replaced(tmp_path, file_system):
    (tmp_path / "box").mkdir()
    write_box(tmp_path / "box", "one")
    assert (tmp_path / "box" / "a").read_text() == "one"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("mine"), "found a file, expected a new path or a box"),
        (lambda p: p.symlink_to("nowhere"), "found a file, expected a new path or a box"),
        (
            lambda p: (p.mkdir(), (p / "notes").write_text("mine")),
            r"a folder with other.*\['notes'",
        ),
        (lambda p: (p.mkdir(), (p / "a").write_text("mine")), "found a folder with no box.json of"),
        (lambda p: (write_box(p, "x"), (p / ".git").mkdir()), r"other entries, such as \['.git'\]"),
        (lambda p: (write_box(p, "x"), (p / "box.json").write_text("{")), "no box.json of this"),
        (lambda p: (write_box(p, "x"), write_json(p / "box.json", [])), "no box.json of this kind"),
        (lambda p: (write_box(p, "x"), write_json(p / "box.json", {"format": 1})), "no box.json"),
    ],
)
def test_whatever_is_not_ours_is_refused_and_stays(tmp_path, make, message):
    path = tmp_path / "box"
    make(path)
    before = sorted((str(p), p.is_file() and p.read_text()) for p in tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=message):
        write_box(path, "new")
    assert sorted((str(p), p.is_file() and p.read_text()) for p in tmp_path.rglob("*")) == before


def test_what_appears_while_it_is_written_is_not_replaced(tmp_path):
    path = tmp_path / "box"

    def write() -> None:
        with atomic_folder(path, OURS):
            path.mkdir()
            (path / "notes").write_text("mine")

    with pytest.raises(BadInput, match="other entries"):
        write()
    assert (path / "notes").read_text() == "mine"
    assert entries(tmp_path) == ["box"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "rename", "exchange", "mkdir"])
@pytest.mark.parametrize("old", ["old", ""])
def test_whichever_operation_fails_the_old_folder_stays(
    tmp_path, monkeypatch, file_system, call, number, old
):
    path = tmp_path / "box"
    if old:
        write_box(path, old)
    if call == "exchange" and (not old or file_system == "two steps"):
        pytest.skip("no exchange")
    if call == "rename" and old and file_system == "exchange":
        pytest.skip("no rename")

    def write() -> None:
        if call == "mkdir":
            monkeypatch.setattr(Path, "mkdir", fail(number))
        elif call == "exchange":
            monkeypatch.setattr(renames, "_exchange", fail(number))
        with atomic_folder(path, OURS) as temporary:
            (temporary / "a").write_text("new")
            (temporary / "box.json").write_text("{}")
            if call in ("fsync", "rename"):
                monkeypatch.setattr(os, call, fail(number))

    with pytest.raises(StorageFailed, match=r"box: cannot write: .* Nothing was changed there"):
        write()
    monkeypatch.undo()
    assert [(p / "a").read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("old", ["old", ""])
def test_a_folder_whose_name_cannot_be_synced_is_taken_back(
    tmp_path, monkeypatch, file_system, old
):
    path = tmp_path / "box"
    if old:
        write_box(path, old)
    sync_folder = renames.sync_folder

    def failing(folder: Path) -> None:
        if folder == tmp_path and (path / "a").is_file() and (path / "a").read_text() == "new":
            raise OSError(errno.EIO, "Input/output error")
        sync_folder(folder)

    monkeypatch.setattr(renames, "sync_folder", failing)
    with pytest.raises(StorageFailed, match="Nothing was changed there"):
        write_box(path, "new")
    assert [(p / "a").read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_file_systems_that_do_not_sync_folders_are_served(tmp_path, monkeypatch):
    monkeypatch.setattr(renames, "sync", fail(errno.EINVAL))
    renames.sync_folder(tmp_path)
    monkeypatch.setattr(renames, "sync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        renames.sync_folder(tmp_path)


def test_of_two_failures_the_message_tells_where_the_old_folder_is(tmp_path, monkeypatch):
    path = tmp_path / "box"
    write_box(path, "old")
    rename = os.rename

    def failing(one, other):  # neither the new folder nor the old one gets there
        if Path(other) == path:
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StorageFailed, match=r"The old content is in \.box\.stflow.*\.old") as error:
        write_box(path, "new")
    monkeypatch.undo()
    assert "Nothing was changed" not in str(error.value)
    assert not path.exists()
    (aside,) = tmp_path.iterdir()
    assert aside.name in str(error.value)
    # once this process has ended
    dead = tmp_path / aside.name.replace(f"-{os.getpid()}-", f"-{DEAD}-")
    aside.rename(dead)
    write_json(tmp_path / "other.json", 1)
    assert (path / "a").read_text() == "old"
    assert entries(tmp_path) == ["box", "other.json"]


def test_an_old_folder_whose_successor_came_is_removed(tmp_path):
    write_box(tmp_path / "box", "new")
    aside = tmp_path / f".box.stflow-{Place.here().token}-{DEAD}-012abc.old"
    aside.mkdir()
    (aside / "a").write_text("old")
    sweep_stale(tmp_path)
    assert entries(tmp_path) == ["box"]
    assert (tmp_path / "box" / "a").read_text() == "new"


KILLED = """
import os, shutil, sys
from pathlib import Path
from stflow_graph.io import renames
from stflow_graph.io.folders import atomic_folder, marked

path, when, after, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), *map(eval, sys.argv[3:])
n_calls = 0

def dying(call):
    def wrapped(*arguments, **options):
        global n_calls
        n_calls += 1
        if n_calls == when and not after:
            os._exit(9)
        result = call(*arguments, **options)
        if n_calls == when:
            os._exit(9)
        return result
    return wrapped

for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir")):
    setattr(module, name, dying(getattr(module, name)))
renames._exchange = dying(renames._exchange if can_exchange else lambda *_: False)
with atomic_folder(path, marked("a box", "box.json", ("box/",), {"box.json", "a"})) as temporary:
    (temporary / "a").write_text("new")
    (temporary / "box.json").write_text('{"format": "box/1"}')
"""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_no_kill_and_sweep_loses_both_old_and_new(tmp_path, can_exchange, after):
    path, seen, n_kills = tmp_path / "folder" / "box", set(), 0
    while True:
        write_box(path, "old")
        arguments = [str(path), str(n_kills + 1), str(after), str(can_exchange)]
        code = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode
        seen.add((path / "a").read_text() if path.exists() else "absent")
        sweep_stale(path.parent)
        assert entries(path.parent) == ["box"]
        assert entries(path) == ["a", "box.json"]
        assert json.loads((path / "box.json").read_text()) == {"format": "box/1"}
        assert (path / "a").read_text() in ("old", "new")
        if code == 0:
            break
        assert code == 9
        n_kills += 1
    assert n_kills >= 5
    assert seen == ({"old", "new"} if can_exchange else {"old", "new", "absent"})


def test_files_are_exchanged_and_taken_back_too(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    temporary = temporary_beside(path)
    temporary.write_text("new")
    with monkeypatch.context() as patch:
        patch.setattr(renames, "sync_folder", fail(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            put(temporary, path)
    assert (path.read_text(), temporary.read_text()) == ("old", "new")
    put(temporary, path)
    assert (path.read_text(), temporary.read_text()) == ("new", "old")
    assert not set_aside(temporary).exists()


def test_a_file_that_cannot_be_taken_back_is_said_to_be_there(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", "old")
    monkeypatch.setattr(renames, "_exchange", lambda *_: False)
    monkeypatch.setattr(renames, "sync_folder", fail(errno.EIO))
    with pytest.raises(StorageFailed, match="The new content is there, and may be lost"):
        write_json(tmp_path / "a.json", "new")
    assert json.loads((tmp_path / "a.json").read_text()) == "new"


def test_a_link_is_replaced_and_not_followed(tmp_path, file_system):
    write_box(tmp_path / "target", "old")
    (tmp_path / "box").symlink_to("target")
    write_box(tmp_path / "box", "new")
    assert not (tmp_path / "box").is_symlink()
    assert [(tmp_path / n / "a").read_text() for n in ("box", "target")] == ["new", "old"]
    assert entries(tmp_path) == ["box", "target"]


def test_a_kind_may_look_closer(tmp_path):
    kind = FolderKind("nothing", lambda folder: "something")
    (tmp_path / "x").mkdir()
    kind.check(tmp_path / "x")  # it is empty
    (tmp_path / "x/y").mkdir()
    with pytest.raises(BadInput, match="a folder with something, expected a new path"):
        kind.check(tmp_path / "x")
