"""Whether HDF5 comes back from reading a file, tried in another process.

One flipped bit can send HDF5 into an endless loop or crash the interpreter. The process is started
with the first file, a third of a second, and asked about each further one, some milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

# how someone ends a process, or the kernel where memory is short
_ENDED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP} if sys.platform != "win32" else set()
_SCRIPT = Path(__file__).with_name("hdf5_walk.py")


class _Walker:
    """The other process, started when it is needed; of files that it came back from, the state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._passed: set[tuple[int, ...]] = set()
        self._was_ended = False

    def comes_back(self, path: Path) -> bool:
        with self._lock:
            state = path.stat()
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            if key in self._passed:
                return True
            # a process that has read other files may be in disorder; one may be ended by anyone
            is_new = self._process is None
            answer = self._ask(path)
            if answer is None and (not is_new or self._was_ended):
                answer = self._ask(path)
            if answer == "done\n":
                self._passed.add(key)
            return answer in ("done\n", "")

    def _ask(self, path: Path) -> str | None:
        """Return the answer, None if there is none, empty where there can be no process."""
        process = self._process or self._start()
        if process is None:
            return ""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # it is gone
            process.stdin.write(json.dumps(os.path.abspath(path)) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            return answer
        self._was_ended = process.wait() in _ENDED
        self.stop()
        return None

    def _start(self) -> subprocess.Popen[str] | None:
        """Start the process; None where that is impossible, and files go untried."""
        if sys.platform == "win32" or not sys.executable:
            return None
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # an interrupt is the command's
            )
        except OSError:
            return None
        self._process = process
        if process.stdout is None or process.stdout.readline() != "ready\n":
            self.stop()
        return self._process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()


_walker = _Walker()


def comes_back(path: Path) -> bool:
    """Return whether HDF5 reads through a file's structure without hanging or crashing."""
    return _walker.comes_back(path)


def _forget() -> None:
    global _walker
    _walker = _Walker()  # of the process that forked this one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _walker.stop())
