"""Names of unfinished files and folders, and removal of those whose process has died.

Names carry the place of their process (host, boot, PID namespace) beside its PID, see
``io.process``: whether another machine's or container's process still runs cannot be seen from
here. Its leftovers are removed once nothing in them has changed for :data:`MAX_AGE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from stflow_graph.io.process import Place, is_alive, seconds_since_boot

# seconds without a change after which files of processes that cannot be seen are leftovers: 7 days
MAX_AGE = 7 * 86400.0
# seconds after which a folder that is set aside, for an instant, takes its place again: 10 min
_MAX_AGE_ASIDE = 600.0
_STALE = re.compile(
    r"\.(?P<name>.+)\.stflow-((?P<place>[0-9a-f]{6}-[0-9a-f]{6}-[0-9a-f]{6})-)?"
    r"(?P<pid>\d+)-([0-9a-f]{6}|[0-9a-f]{8})\.(?P<ending>tmp|old)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class _Unfinished:
    """An entry of a folder that a process of this package has not finished."""

    path: Path
    name: str
    place: str | None  # None: of a version whose names had a PID alone
    pid: int
    is_aside: bool

    @classmethod
    def of(cls, path: Path) -> _Unfinished | None:
        match = _STALE.fullmatch(path.name)
        if not match:
            return None
        is_aside = match["ending"] == "old"
        return cls(path, match["name"], match["place"], int(match["pid"]), is_aside)

    @property
    def target(self) -> Path:
        return self.path.with_name(self.name)

    def is_left(self, here: Place) -> bool:
        """Return whether its process has died, or nothing has changed for long."""
        if self.place == here.token:
            return not is_alive(self.pid)
        if self.place is None and is_alive(self.pid):
            return False
        is_alone = self.is_aside and not os.path.lexists(self.target)
        age = _MAX_AGE_ASIDE if is_alone else MAX_AGE
        if self.place is not None and here.is_other_boot(self.place):  # its processes are dead
            age = min(age, seconds_since_boot())  # machines of one name may be two
        return is_older(self.path, age)


def temporary_beside(path: Path) -> Path:
    """Return a free name in the folder of ``path``, which :func:`sweep_stale` knows as ours.

    It is at most 48 bytes longer than the name of ``path``, see ``io.outputs``.
    """
    token = f"stflow-{Place.here().token}-{os.getpid()}-{secrets.token_hex(3)}"
    return path.parent / f".{path.name}.{token}.tmp"


def sweep_stale(folder: Path) -> None:
    """Remove this package's unfinished files in ``folder`` whose process no longer runs.

    Those of this machine and PID namespace are removed when their process has died, those of
    before this machine started if they have not changed since then; those of others, and of
    versions whose names had a PID alone, once nothing in them has changed for :data:`MAX_AGE`. An
    old folder whose successor never came takes its place again.
    """
    here = Place.here()
    for path in folder.glob(".*.stflow-*"):
        entry = _Unfinished.of(path)
        if entry is None or not entry.is_left(here):
            continue
        if entry.is_aside:
            _restore(path, entry.target)
        else:
            remove(path)


def _restore(aside: Path, path: Path) -> None:
    """Put an old folder back in its place, or remove it if its successor is there."""
    rubbish = aside.with_suffix(".tmp")
    with contextlib.suppress(OSError):  # another process may have done it
        # under its name it is whole; a removal that is cut off must not leave a part of it there
        os.rename(aside, rubbish if os.path.lexists(path) else path)
    remove(rubbish)


def remove(path: Path) -> None:
    """Remove a file or folder of this package's own that nobody needs; it may be absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_older(path: Path, seconds: float) -> bool:
    """Return whether nothing in a file or folder has changed for so long.

    By this machine's clock and the file system's, either of which may be wrong.
    """
    try:
        changed = max(_times(path))
        if time.time() - changed < seconds:
            return False
        return _clock_of(path.parent) - changed >= seconds
    except OSError:
        return False


def _times(path: Path) -> Iterator[float]:
    """Yield when a file, or a folder and all in it, were changed or renamed."""
    inside = path.rglob("*") if path.is_dir() else ()
    for entry in (path, *inside):
        status = entry.lstat()
        yield max(status.st_mtime, status.st_ctime)


def _clock_of(folder: Path) -> float:
    """Return the time of the file system's clock, which may be another machine's.

    Raises:
        OSError: nothing can be written there.
    """
    probe = temporary_beside(folder / "clock")
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        remove(probe)
