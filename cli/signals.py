"""What SIGINT and SIGTERM do: one line and an exit code of their own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from types import FrameType

# they skip what is complete and go on with the rest
_RESUMED = {"download", "prepare", "genes", "embed", "probe", "train", "sample", "predict"}


def command_of(arguments: Sequence[str]) -> str:
    """Return the command's name, the first word that is no option; "" if there is none."""
    return next((word for word in arguments if not word.startswith("-")), "")


def handle_signals(arguments: Sequence[str]) -> None:
    """End with one line and exit code 130 or 143 on SIGINT and SIGTERM; a second one at once.

    Args:
        arguments: of the command line, the command before its options.
    """
    resumes = command_of(arguments) in _RESUMED and "--overwrite" not in arguments
    line = b"interrupted; the same command resumes\n" if resumes else b"interrupted\n"
    if os.environ.get("RANK", "0") != "0":
        line = b""  # the first rank says so

    def end(signum: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signum, signal.SIG_DFL)
        # not print: the signal may have come in the middle of one
        with contextlib.suppress(OSError):
            os.write(2, (b"\r\x1b[2K" if os.isatty(2) else b"") + line)  # over a progress bar
        raise SystemExit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)
