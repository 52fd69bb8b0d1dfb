"""Folders written whole: a final path is absent, the old folder or the new one, never a part.

Only folders of a known kind are replaced, told by a mark that this package leaves in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from stflow_graph.errors import BadInput, StorageFailed, unquoted
from stflow_graph.io.atomic import as_storage_error
from stflow_graph.io.renames import put, sync_tree
from stflow_graph.io.temporaries import remove, sweep_stale, temporary_beside

_MAX_MARK = 2**24


@dataclasses.dataclass(frozen=True)
class FolderKind:
    """A kind of folder that this package writes.

    Attributes:
        name: with its article, for messages.
        foreign: returns what in a folder is not of this kind, in words; "" if nothing.
    """

    name: str
    foreign: Callable[[Path], str]

    def check(self, path: Path) -> None:
        """Refuse to replace anything but an empty folder and one of this kind.

        Raises:
            BadInput: ``path`` is a file or a folder of something else.
        """
        if not path.is_symlink() and not path.exists():
            return
        if not path.is_dir():
            raise BadInput(path, "output", unquoted("a file"), f"a new path or {self.name}")
        if any(path.iterdir()) and (foreign := self.foreign(path)):
            fix = "give another path, or move it away"
            expected = f"a new path, an empty folder or {self.name}"
            raise BadInput(path, "output", unquoted(f"a folder with {foreign}"), expected, fix)


def marked(name: str, file: str, formats: tuple[str, ...], entries: Collection[str]) -> FolderKind:
    """Return the kind of folders with a JSON file that states their format.

    Args:
        name: of the kind, with its article.
        file: the JSON file, an object with ``format``.
        formats: beginnings of the formats of this kind.
        entries: names of all files and folders that this kind may hold.
    """

    def foreign(folder: Path) -> str:
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in entries)
        if others:
            return f"other entries, such as {others[:3]}"
        stored = read_mark(folder / file)
        return "" if stored.startswith(formats) else f"no {file} of this kind"

    return FolderKind(name, foreign)


def read_mark(file: Path, *keys: str) -> str:
    """Return the entry ``format`` of a JSON object, or one nested below keys; "" if it has none."""
    try:
        if file.stat().st_size > _MAX_MARK:
            return ""
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    for key in (*keys, "format"):
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, str) else ""


@contextlib.contextmanager
def atomic_folder(path: str | Path, kind: FolderKind) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it takes the place of ``path``.

    On any failure the temporary folder is removed and an old folder at ``path`` is untouched.

    Args:
        path: the final path.
        kind: of the folder; an old one is replaced only if it is of this kind.

    Raises:
        StorageFailed: the disk is full, read-only or broken.
        BadInput: ``path`` holds something else, or its folder cannot be written.
    """
    path = Path(path)
    with as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_stale(path.parent)
        kind.check(path)
        temporary = temporary_beside(path)
        temporary.mkdir()
        try:
            try:
                yield temporary
            except StorageFailed as error:  # of a file inside, which is named as it will be
                message = str(error).replace(str(temporary), str(path))
                raise StorageFailed(message) from error
            sync_tree(temporary)
            kind.check(path)  # work may have taken hours
            put(temporary, path)
        finally:
            remove(temporary)
