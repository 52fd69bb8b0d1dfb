"""Checkpoints in one file: a zip archive of the folder, as it is sent by mail or put on a page."""

from __future__ import annotations

import functools
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from stflow_graph.errors import BadModel, as_bad_input, as_bad_model, unquoted
from stflow_graph.io.atomic import check_file
from stflow_graph.nn.pretrained import MODEL_FILES

_MAX_BYTES = 2**32
_ENCRYPTED = 1  # bit of a member's flags
_MAX_RATIO = 100  # unpacked to packed; weights hardly shrink


def unpacked(file: str | Path) -> Path:
    """Return a temporary folder with the files of a checkpoint in a zip archive.

    The archive holds the checkpoint's files at its top or in one folder; anything else in it is
    left alone. The folder is there until the process ends.

    Raises:
        BadModel: no zip archive, a damaged one, one without a checkpoint or with several, or with
            files that are too large to be one's.
    """
    path = check_file(file)
    status = path.stat()
    return Path(_unpack(path.resolve(), status.st_mtime_ns, status.st_size).name)


@functools.cache
def _unpack(path: Path, _changed: int, size: int) -> tempfile.TemporaryDirectory[str]:
    content: dict[str, bytes] = {}
    if not zipfile.is_zipfile(path):
        expected = "a run or checkpoint folder, or a zip archive of one"
        raise BadModel(path, "content", unquoted("no zip archive"), expected)
    expected = "a whole zip archive of a checkpoint"
    with as_bad_model(), as_bad_input(path, "content", expected), zipfile.ZipFile(path) as archive:
        for name, member in _members(path, archive, size).items():
            if member.flag_bits & _ENCRYPTED:
                expected = "a zip archive without a password"
                raise BadModel(path, "content", unquoted("encrypted"), expected)
            content[name] = archive.read(member)
    folder = tempfile.TemporaryDirectory(prefix="stflow-graph-")
    for name, data in content.items():
        (Path(folder.name) / name).write_bytes(data)
    return folder


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the checkpoint's files in an archive by name."""
    files = [(PurePosixPath(info.filename), info) for info in archive.infolist()]
    tops = [name.parent for name, _ in files if name.name == "config.json"]
    if len(tops) != 1:
        found = unquoted(f"{len(tops)} files config.json")
        raise BadModel(path, "content", found, "one checkpoint", "give a zip of one folder")
    members = {
        name.name: info
        for name, info in files
        if name.parent == tops[0] and name.name in MODEL_FILES
    }
    total = sum(info.file_size for info in members.values())
    if total > min(_MAX_BYTES, _MAX_RATIO * size):
        found = unquoted(f"{total:,} bytes in an archive of {size:,}")
        raise BadModel(path, "size", found, "the files of a checkpoint")
    return members
