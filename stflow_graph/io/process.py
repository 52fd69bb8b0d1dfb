"""The place of a process: its machine, boot and PID namespace, whether it still runs, its memory.

A PID means something only in its PID namespace on one boot of one machine. Folders are shared by
machines (NFS, Lustre) and by containers, which often run under the same few PIDs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
# a place that cannot be determined is that of this process alone, so no other is taken for dead
_UNKNOWN = secrets.token_hex(8)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where PIDs have one meaning.

    Attributes:
        host: the machine's name.
        boot: what the kernel drew when it started.
        namespace: of PIDs on this kernel.
    """

    host: str
    boot: str
    namespace: str

    @classmethod
    def here(cls) -> Place:
        """Return the place of this process, which may have entered another namespace."""
        if sys.platform != "linux":  # no namespaces of PIDs
            return cls(socket.gethostname(), "", "")
        try:
            namespace = os.readlink(_PROC / "self/ns/pid")  # "pid:[4026531836]"
        except OSError:
            namespace = f"{_UNKNOWN}-{os.getpid()}"
        return cls(socket.gethostname(), _boot(), namespace)

    @property
    def token(self) -> str:
        """Three hashes, of 6 hex digits each, for the names of files."""
        return "-".join(_short_hash(x) for x in (self.host, self.boot, self.namespace))

    def is_other_boot(self, token: str) -> bool:
        """Return whether a token is of this machine, by its name, before or after a restart."""
        host, boot, _ = token.split("-")
        mine = self.token.split("-")
        return host == mine[0] and boot != mine[1]


@functools.cache
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _UNKNOWN


@functools.lru_cache(256)
def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def is_alive(pid: int) -> bool:
    """Return whether there is a process with a PID at this place."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _status(pid)[:1] not in (["Z"], ["X"])  # ended, and its parent has not noticed


def start_of(pid: int) -> str | None:
    """Return when a process at this place started, in ticks of its boot; None if unknown.

    Two processes that have the same PID one after the other differ in it.
    """
    fields = _status(pid)
    return fields[19] if len(fields) > 19 else None


def _status(pid: int) -> list[str]:
    """Return the fields of a process's status from its state on; none if they are unknown."""
    try:
        if os.readlink(_PROC / "self") != str(os.getpid()):  # of another PID namespace
            return []
        # the second field, a name in parentheses, may have spaces
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return []


def available_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where the system does not tell.

    In a container or a job with a limit of memory they are what is left of it.
    """
    try:
        text = (_PROC / "meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", text)
    known = [int(available[1]) * 1024] if available else []
    return min([*known, *_left_of_limits()], default=None)


def _left_of_limits() -> Iterator[int]:
    """Yield what this process's control groups, and those above them, leave of their memory."""
    try:
        lines = (_PROC / "self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            root, names = _CGROUPS / "memory", _OF_VERSION_1
        else:
            continue
        group = root / place.lstrip("/")
        for folder in (group, *group.parents):
            if (left := _left_of(folder, *names)) is not None:
                yield left
            if folder == root:
                break


def _left_of(group: Path, limit: str, usage: str, cached: str) -> int | None:
    """Return what a control group leaves; pages that only cache files count as free."""
    try:
        most, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, usage))
        found = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group here, or "max": no limit
        return None
    return max(0, most - used + (int(found[1]) if found else 0))


def seconds_since_boot() -> float:
    """Return how long this machine has run, sleep included; infinity if that is unknown."""
    try:
        return float((_PROC / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return math.inf
