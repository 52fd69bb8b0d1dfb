"""The inputs of all commands, and a process that commands are forked from."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import cli
from fault_commands import write_inputs
from fault_trials import Trials, started

__all__ = ["cli"]


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of all commands, which no command changes."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def trials(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("faults")
    if os.access("/dev/shm", os.W_OK):  # where a sync takes no time
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    with started(inputs, folder) as running:
        yield running
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
