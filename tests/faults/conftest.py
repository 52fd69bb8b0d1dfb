"""The warm process that runs commands, and their inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import cli
from fault_commands import Trials, write_inputs
from h5py._objects import phil

__all__ = ["cli"]
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def h5py_is_not_locked() -> Iterator[None]:
    """Check that threads can use h5py: an error at the wrong moment leaves its lock locked."""
    yield
    free: list[bool] = []

    def take() -> None:
        free.append(phil.acquire(blocking=False))
        if free[0]:
            phil.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert free == [True]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of all commands, which no command changes."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def trials(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("faults")
    if os.access("/dev/shm", os.W_OK):  # where a sync takes no time
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    shim = folder / "shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    options = ["-O1", "-shared", "-fPIC", "-o", str(shim), str(HERE / "shim.c"), "-ldl"]
    subprocess.run([compiler, *options], check=True)
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *filter(None, sys.path)])
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": path, "COLUMNS": "500"}
    command = [sys.executable, "-W", "ignore", str(HERE / "driver.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=folder, **pipes) as driver:
        assert driver.stdout.readline() == "ready\n"
        yield Trials(driver, inputs, folder)
        driver.stdin.close()
    shutil.rmtree(folder)


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: one with copies of the inputs."""
    for name in ("patches", "embeddings", "cohort", "predictions", "run"):
        shutil.copytree(inputs / name, tmp_path / name)
    shutil.copy(inputs / "model.pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return tmp_path
