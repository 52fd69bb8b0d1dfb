"""Two containers on one folder: processes of one PID at a time, which do not see each other."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fault_commands import COMMANDS, Trials, is_leftover

from stflow_graph.io.atomic import sha256
from stflow_graph.io.temporaries import sweep_stale

HERE = Path(__file__).parents[1]
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child")


@functools.cache
def refusal() -> str:
    """Return why there are no namespaces here; "" if there are."""
    if shutil.which(CONTAINER[0]) is None:
        return "needs unshare"
    ran = subprocess.run([*CONTAINER, "true"], check=False, capture_output=True, text=True)
    return ran.stderr.strip() or "unshare fails" if ran.returncode else ""


@pytest.fixture(autouse=True)
def permitted() -> None:
    if reason := refusal():
        pytest.skip(f"no namespaces: {reason}")


class Containers:
    """Starts Python code in PID and UTS namespaces of their own."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, sys.path)])
        self._environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "500"}
        self._all: list[subprocess.Popen[str]] = []

    def start(self, host: str, code: str, *arguments: object) -> subprocess.Popen[str]:
        name = f"import socket; socket.sethostname({host!r})\n" if host else ""
        command = [*CONTAINER, sys.executable, "-W", "ignore", "-c", name + code]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*command, *map(str, arguments)], env=self._environment, text=True, **pipes
        )
        self._all.append(process)
        return process

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.fixture
def containers():
    containers = Containers()
    yield containers
    containers.end()


WRITER = """
import os, sys
from pathlib import Path
from stflow_graph.io.atomic import atomic_file, write_text
from stflow_graph.io.folders import FolderKind, atomic_folder

folder, name = Path(sys.argv[1]), sys.argv[2]
with atomic_file(folder / "same") as file, atomic_folder(folder / name, FolderKind("", str)) as box:
    file.write(name.encode() * 1000)
    write_text(box / "a", name)
    print(os.getpid(), flush=True)
    for turn in sys.stdin:  # others sweep and write now
        write_text(folder / f"{name}{turn.strip()}", name)
        print("ok", flush=True)
"""


@pytest.mark.parametrize("hosts", [("one", "two"), ("same", "same"), ("", "")])
def test_processes_of_one_pid_in_two_containers_leave_each_others_files(
    tmp_path, containers, hosts
):
    writers = [
        containers.start(host, WRITER, tmp_path, name)
        for host, name in zip(hosts, ("a", "b"), strict=True)
    ]
    pids = [writer.stdout.readline() for writer in writers]
    assert pids[0] == pids[1] == "1\n"
    for turn in range(5):
        for writer in writers:
            writer.stdin.write(f"{turn}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "ok\n"
        sweep_stale(tmp_path)  # outside of both, where the PIDs of theirs mean others
        assert len(list(tmp_path.glob(".*.tmp"))) == 4
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    assert (tmp_path / "same").read_text() in ("a" * 1000, "b" * 1000)
    for name in "ab":
        assert (tmp_path / name / "a").read_text() == name
        assert [(tmp_path / f"{name}{turn}").read_text() for turn in range(5)] == [name] * 5
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_container_leaves_is_not_taken_for_ones_own(tmp_path, containers):
    writer = containers.start("", WRITER, tmp_path, "a")
    assert writer.stdout.readline() == "1\n"
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.stdout.read() == ""  # its end: an earlier end of its input would let it finish
    sweep_stale(tmp_path)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2  # for seven days, see tests/io


LOCKER = """
import sys
from pathlib import Path
from stflow_graph.errors import StorageFailed
from stflow_graph.io import locks

locks.HEARTBEAT = 0.2
try:
    with locks.lock(Path(sys.argv[1]), "another job"):
        print("held", flush=True)
        sys.stdin.read()
except StorageFailed as error:
    print(error)
"""


def test_a_lock_is_not_taken_from_another_container(tmp_path, containers):
    first = containers.start("one", LOCKER, tmp_path / ".lock")
    assert first.stdout.readline() == "held\n"
    for host in ("one", "two"):
        text, log = containers.start(host, LOCKER, tmp_path / ".lock").communicate()
        assert ".lock: waiting for a sign of life of another job" in log
        assert "another job is writing there: PID 1 on 'one' since '" in text
        assert "taken over 10 min after" in text
        assert len(text.splitlines()) == 1
    first.communicate()
    text, _ = containers.start("two", LOCKER, tmp_path / ".lock").communicate()
    assert text == "held\n"
    assert not list(tmp_path.iterdir())


def results(folder: Path) -> dict[str, str]:
    """Return hashes of all that does not depend on the time or the process."""
    others = re.compile(r"tensorboard/|history\.csv|result\.json|state-")
    return {
        str(file.relative_to(folder)): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not others.search(str(file))
    }


def test_folds_of_one_run_are_trained_in_two_containers(trials: Trials):
    trials.reset(COMMANDS["train"])

    def command(out: str, fold: int) -> list[object]:
        arguments = COMMANDS["train"].arguments(trials.inputs, trials.out)
        arguments[arguments.index("--out") + 1] = trials.out / out
        arguments[arguments.index("--folds") + 1] = fold
        return arguments

    answers = trials.run_in_containers(command("run", 0), command("run", 1))
    assert [code for code, _ in answers] == [0, 0], answers
    for fold in (0, 1):
        assert (trials.out / f"run/fold{fold}/result.json").exists()
    answers = trials.run_in_containers(command("same", 0), command("same", 0))
    assert sorted(code for code, _ in answers) in ([0, 74], [0, 0]), answers
    for code, text in answers:
        if code:
            assert re.search(
                r"error: .*same/fold0: another training is writing there: PID 1 on 'node[01]'", text
            )
    assert results(trials.out / "run/fold0") == results(trials.out / "same/fold0")
    assert not any(map(is_leftover, trials.files()))


@pytest.mark.parametrize("name", ["sample", "embed", "convert", "eval"])
def test_two_containers_write_the_same_files(trials: Trials, name):
    command = COMMANDS[name]
    trials.reset(command)
    trials.run(command)
    alone = results(trials.out)
    for _ in range(3):
        trials.reset(command)
        arguments = command.arguments(trials.inputs, trials.out)
        answers = trials.run_in_containers(arguments, arguments)
        assert [code for code, _ in answers] == [0, 0], answers
        assert results(trials.out) == alone
        assert not any(map(is_leftover, trials.files()))
