"""Runs commands in forked processes and looks at what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_commands import Command

HERE = Path(__file__).parent / "faults"
COMPILER = shutil.which("cc") or shutil.which("gcc")
# logs that are appended to, and files with the time that work took
NOT_COMPARED = ("tensorboard/", "history.csv", "result.json", "state-", ".log")


class Trials:
    """Runs commands with faults in a folder of their own."""

    def __init__(self, driver: subprocess.Popen[str], inputs: Path, folder: Path) -> None:
        self._driver, self.inputs, self._folder = driver, inputs, folder
        self.out = folder / "out"

    def reset(self, command: Command) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        command.before(self.inputs, self.out)

    def run(self, command: Command, **fault: int) -> dict[str, Any]:
        """Return the exit code, how many operations were counted and hit, and standard error."""
        log = self._folder / "stderr.txt"
        job = {
            "arguments": [str(a) for a in command.arguments(self.inputs, self.out)],
            "folder": str(self.out),
            "log": str(log),
            "fault": {"for_ever": 0, "number": 0, "kind": 0, "calls": 63, "when": 0, **fault},
        }
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(job) + "\n")
        self._driver.stdin.flush()
        return {**json.loads(self._driver.stdout.readline()), "error": log.read_text()}

    def files(self) -> dict[str, str]:
        """Return the hash of every file in the output's folder, by name."""
        return {
            str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and not any(name in str(path) for name in NOT_COMPARED)
        }


def errors(found: dict[str, Any]) -> list[str]:
    """Return the lines on standard error, without warnings and what progress bars leave."""
    lines = found["error"].splitlines()
    return [line for line in lines if line.strip() and not line.startswith("WARNING")]


@contextmanager
def started(inputs: Path, folder: Path) -> Iterator[Trials]:
    """Start the process that commands are forked from.

    Args:
        inputs: their inputs.
        folder: of the outputs and of what the trials need themselves.
    """
    shim = folder / "shim.so"
    assert COMPILER is not None
    options = ["-O1", "-shared", "-fPIC", "-o", str(shim), str(HERE / "shim.c"), "-ldl"]
    subprocess.run([COMPILER, *options], check=True)
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *filter(None, sys.path)])
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": path, "COLUMNS": "500"}
    command = [sys.executable, "-W", "ignore", str(HERE / "driver.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=folder, **pipes) as driver:
        assert driver.stdout.readline() == "ready\n"
        yield Trials(driver, inputs, folder)
        driver.stdin.close()
