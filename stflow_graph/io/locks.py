"""Locks of folders, for processes of several machines and containers that share a disk.

A lock is a file that names its owner. It is made by a hard link, or exclusively where there are no
links: both work over NFS and on file systems without ``flock``. While it is held its time is
renewed every :data:`HEARTBEAT` seconds. It is taken over from a process that has died: on the same
machine and in the same PID namespace that is seen at once, of others it is known when the time has
not been renewed for :data:`MAX_SILENCE` seconds. A job that a cluster restarts on another machine
waits for that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import logging
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from stflow_graph.errors import StorageFailed, short_repr
from stflow_graph.io.atomic import as_storage_error
from stflow_graph.io.process import Place, is_alive, seconds_since_boot, start_of
from stflow_graph.io.temporaries import is_older, remove, temporary_beside

HEARTBEAT = 10.0
MAX_SILENCE = 600.0
logger = logging.getLogger(__name__)

_FORMAT = "stflow_graph.lock/1"
_MAX_BYTES = 2**16
_POLL, _MAX_POLL = 0.05, 1.0
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: its machine.
        boot: of the machine.
        namespace: of its PID.
        pid: its number there.
        started: its start in the machine's ticks, "" if unknown.
        command: its command line.
        since: when it took the lock, UTC.
        token: of this lock alone.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    command: str
    since: str
    token: str

    @classmethod
    def this(cls) -> Owner:
        """Return this process as the owner of a new lock."""
        place, pid = Place.here(), os.getpid()
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
        since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        started = start_of(pid) or ""
        return cls(
            *(place.host, place.boot, place.namespace, pid, started),
            *(command[:2000], since, secrets.token_hex(8)),
        )

    @classmethod
    def of(cls, file: Path) -> Owner | None:
        """Return the owner that a lock names; None if it names none.

        Raises:
            FileNotFoundError: there is no lock.
        """
        with file.open("rb") as stream:
            text = stream.read(_MAX_BYTES)
        try:
            content = json.loads(text)
            owner = cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        values = dataclasses.asdict(owner)
        pid = values.pop("pid")
        is_valid = type(pid) is int and all(type(value) is str for value in values.values())
        return owner if is_valid else None

    def is_alive(self) -> bool | None:
        """Return whether it still runs; None if that cannot be seen from this process."""
        place = Place.here()
        if place != Place(self.host, self.boot, self.namespace):
            return None
        if not is_alive(self.pid):
            return False
        started = start_of(self.pid)
        if not started or not self.started:
            return None
        return started == self.started  # else another process has the number now

    def __str__(self) -> str:
        return (
            f"PID {self.pid} on {short_repr(self.host)} since {short_repr(self.since)}, "
            f"{short_repr(self.command)}"
        )


@contextlib.contextmanager
def lock(file: Path, work: str, *, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        file: the lock, in the folder.
        work: what holds it, for the message, such as "another training".
        wait: seconds to wait for another process that runs; one of which that cannot be seen is
            waited for until it gives a sign of life, or has given none for long.

    Raises:
        StorageFailed: another process holds it, which the message names.
    """
    owner = Owner.this()
    with as_storage_error(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        _wait(file, owner, work, wait)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(file, owner, done), daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        if _is_of(file, owner):
            remove(file)


def _wait(file: Path, owner: Owner, work: str, seconds: float) -> None:
    """Acquire a lock, as soon as that can be."""
    until, pause, first_seen = time.monotonic() + seconds, _POLL, dict[str, int]()
    while not _acquire(file, owner):
        if _is_silent(file, first_seen):
            if pause == _POLL:
                logger.warning("%s: waiting for a sign of life of %s", file, work)
        elif time.monotonic() >= until:
            check_unlocked(file, work)
        time.sleep(pause)
        pause = min(1.2 * pause, _MAX_POLL)


def _is_silent(file: Path, first_seen: dict[str, int]) -> bool:
    """Return whether an owner cannot be seen, and has renewed nothing since it was looked at.

    Args:
        file: the lock.
        first_seen: the time of the lock when it was looked at first, by owner; is extended.
    """
    try:
        owner, time_ns = Owner.of(file), file.stat().st_mtime_ns
    except OSError:
        return False
    if owner is not None and owner.is_alive() is not None:
        return False
    return first_seen.setdefault(owner.token if owner else "", time_ns) == time_ns


def check_unlocked(file: Path, work: str) -> None:
    """Check that no other process holds a lock.

    Raises:
        StorageFailed: one does; see :func:`lock`.
    """
    try:
        owner = Owner.of(file)
    except OSError:
        return
    if _is_left(file, owner):
        return
    note = ""
    if owner is None or owner.is_alive() is None:
        minutes = MAX_SILENCE / 60
        note = f"; it is taken over {minutes:g} min after its owner's last sign of life"
    name = f"{owner}" if owner else f"a process that {file.name} does not name"
    raise StorageFailed(
        f"{file.parent}: {work} is writing there: {name}{note}. "
        "Fix: wait for it, or choose another folder"
    )


def _acquire(file: Path, owner: Owner) -> bool:
    """Make the lock, or take it over from a process that has died; return whether it is ours."""
    if _create(file, owner):
        return True
    try:
        old = Owner.of(file)
        if not _is_left(file, old):
            return False
    except FileNotFoundError:
        return _create(file, owner)
    # one process at a time may take over from this owner
    claim = file.with_name(f"{file.name}.{'unknown' if old is None else old.token[:32]}")
    if not _create(claim, owner):
        with contextlib.suppress(OSError):
            if _is_left(claim, Owner.of(claim)):
                remove(claim)
        return False
    try:
        with contextlib.suppress(FileNotFoundError):
            if Owner.of(file) == old and _is_left(file, old):
                file.unlink()
        return _create(file, owner)
    finally:
        remove(claim)


def _create(file: Path, owner: Owner) -> bool:
    """Make a file that names its owner, unless there is one; return whether it was made."""
    content = json.dumps({"format": _FORMAT, **dataclasses.asdict(owner)}, indent=2).encode()
    temporary = temporary_beside(file)
    try:
        _write_new(temporary, content)
        try:
            os.link(temporary, file)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return _write_new(file, content, may_exist=True)
            # an answer of NFS may be lost, and the call repeated
            if error.errno != errno.EEXIST or not _is_of(file, owner):
                if error.errno == errno.EEXIST:
                    return False
                raise
        return True
    finally:
        remove(temporary)


def _write_new(file: Path, content: bytes, *, may_exist: bool = False) -> bool:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except FileExistsError:
        if may_exist:
            return False
        raise
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    return True


def _is_of(file: Path, owner: Owner) -> bool:
    try:
        return Owner.of(file) == owner
    except OSError:
        return False


def _is_left(file: Path, owner: Owner | None) -> bool:
    """Return whether a lock's process has died, or has given no sign of life for long."""
    alive = None if owner is None else owner.is_alive()
    if alive is not None:
        return not alive
    silence, place = MAX_SILENCE, Place.here()
    if owner and owner.host == place.host and owner.boot != place.boot:
        silence = min(silence, seconds_since_boot())
    return is_older(file, silence)


def _beat(file: Path, owner: Owner, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        if _is_of(file, owner):
            with contextlib.suppress(OSError):
                os.utime(file)
