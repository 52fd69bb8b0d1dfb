"""How many small faults of the core do the fast tests notice?

usage: python benchmarks/mutations.py [--n 100] [--seed 0] [--jobs 2] [--out OUT]

Of all mutants (see ``mutants.py``) of training/, inference/, nn/, flow/ and graph/, --n are drawn
at random. Each is put into a copy of the tree, on which the tests run, those of the mutated module
first, until one fails; a mutant on which they do not end counts as killed. The tests must pass on
the unchanged copy first. Prints a table by room and the survivors; --out writes mutations.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from mutants import Mutant, mutants_of
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# rooms, and the folders of tests that run on their mutants, one after the other
ROOMS = {
    "training": ("training", "inference", "models"),
    "inference": ("inference", "training", "models"),
    "nn": ("nn", "training", "inference"),
    "flow": ("flow", "training", "inference"),
    "graph": ("graph", "training", "inference"),
}
# of these folders: runs of whole stages, which take many seconds
SLOW = ("test_slide_model.py", "test_pretrained.py", "test_stflow_weights.py")
COPIED = ("stflow_graph", "cli", "tests", "examples", "pyproject.toml", "README.md")
PYTEST = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
PYTEST += ["-k", "not compiles", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
PYTEST += ["-o", "timeout=60"]  # seconds that a test may take
MIN_SECONDS = 60.0  # before tests that do not end are ended
# imported once, before the processes that run tests are forked
LIBRARIES = ("torch", "torch_geometric.nn", "anndata", "sklearn", "scipy.stats", "h5py")


def tests_of(file: str, root: Path) -> list[str]:
    """Return the files of tests that run on a file's mutants, the likeliest killers first."""
    path, tests = Path(file).relative_to("stflow_graph"), root / "tests"
    own = tests / path.with_name(f"test_{path.name}")
    folders = [own.parent, *(tests / folder for folder in ROOMS[path.parts[0]])]
    others = [other for folder in folders for other in sorted(folder.rglob("test_*.py"))]
    fast = [other for other in others if other.name not in SLOW]
    chosen = [own, *fast] if own.is_file() else fast
    return [str(test.relative_to(root)) for test in dict.fromkeys(chosen)]


@dataclasses.dataclass
class Slot:
    """A copy of the tree in which one process at a time runs tests."""

    folder: Path

    @property
    def tree(self) -> Path:
        """The copy."""
        return self.folder / "tree"

    def copy(self, root: Path) -> None:
        """Copy what tests need."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, self.tree / name, ignore=ignored)
            elif (root / name).is_file():
                shutil.copy2(root / name, self.tree / name)

    def test(self, tests: list[str]) -> None:
        """Run tests on the copy, as the last thing that this process does."""
        os.setsid()  # so that what it starts ends with it
        os.chdir(self.tree)
        sys.dont_write_bytecode = True  # two mutants may have the same size and second
        sys.path.insert(0, str(self.tree))
        os.environ["PYTHONPATH"] = f"{self.tree}:{os.environ.get('PYTHONPATH', '')}"
        with (self.folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            with contextlib.redirect_stdout(output):
                code = pytest.main([*PYTEST, f"--basetemp={self.folder / 'tmp'}", *tests])
        os._exit(code)

    def failed_test(self) -> str:
        """Return the first test that failed."""
        text = (self.folder / "output").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return lines[0].split(" ")[1] if lines else text.strip()[-200:]


class Run:
    """The tests of one mutant, in a process of their own.

    Args:
        mutant: the mutant.
        tests: files of tests.
        slot: where they run.
    """

    def __init__(self, mutant: Mutant, tests: list[str], slot: Slot) -> None:
        self.mutant, self.slot, self.path = mutant, slot, slot.tree / mutant.file
        self.source, self.start = self.path.read_bytes(), time.monotonic()
        self.path.write_bytes(mutant.apply(self.source))
        self.process = multiprocessing.get_context("fork").Process(target=slot.test, args=(tests,))
        self.process.start()

    def is_over(self, limit: float) -> bool:
        """Whether the tests have ended, or were ended after so many seconds; set the outcome."""
        mutant, alive = self.mutant, self.process.is_alive()
        mutant.seconds = time.monotonic() - self.start
        if alive and mutant.seconds < limit:
            return False
        self.end()
        mutant.outcome = "timeout" if alive else "killed" if self.process.exitcode else "survived"
        mutant.killer = self.slot.failed_test() if mutant.outcome == "killed" else ""
        return True

    def end(self) -> None:
        """End the process, if it has not, and restore the copy."""
        if self.process.is_alive():
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.path.write_bytes(self.source)


def run_all(mutants: list[Mutant], root: Path, jobs: int, report: Callable[[str], None]) -> None:
    """Test mutants, several at a time, and set the outcome of each.

    Raises:
        RuntimeError: the tests fail without a change.
    """
    with tempfile.TemporaryDirectory() as folder:
        slots = [Slot(Path(folder) / str(job)) for job in range(jobs)]
        for slot in slots:
            slot.copy(root)
        tests = [(mutant, tests_of(mutant.file, root)) for mutant in mutants]
        proofs = []
        for room in sorted({mutant.room for mutant in mutants}):
            every = dict.fromkeys(t for m, files in tests if m.room == room for t in files)
            unchanged = Mutant(f"stflow_graph/{room}/__init__.py", 0, "unchanged", "", "", (0, 0))
            proofs.append((unchanged, list(every)))
        _run_each(proofs, slots, {proof.room: 3600.0 for proof, _ in proofs}, report)
        for proof, _ in proofs:
            if proof.outcome != "survived":
                raise RuntimeError(f"tests of {proof.room} fail without a change: {proof.killer}")
        _run_each(tests, slots, {p.room: MIN_SECONDS + 4 * p.seconds for p, _ in proofs}, report)


def _run_each(
    work: list[tuple[Mutant, list[str]]],
    slots: list[Slot],
    limits: dict[str, float],
    report: Callable[[str], None],
) -> None:
    """Run the tests of each mutant, as many at a time as there are slots."""
    pending, free, running = work[::-1], list(slots), []
    try:
        while pending or running:
            while pending and free:
                running.append(Run(*pending.pop(), free.pop()))
            wait([run.process.sentinel for run in running], timeout=1)
            for run in [run for run in running if run.is_over(limits[run.mutant.room])]:
                running.remove(run)
                free.append(run.slot)
                report(f"{run.mutant.outcome:8} {run.mutant.seconds:5.0f} s  {run.mutant}")
    finally:
        for run in running:
            run.end()


def summary(mutants: list[Mutant]) -> Table:
    """Return the table of rooms."""
    table = Table("room", "mutants", "killed", "survived", "% killed", "s a mutant")
    rooms = sorted({mutant.room for mutant in mutants})
    for name in [*rooms, "all"]:
        part = [mutant for mutant in mutants if name in (mutant.room, "all")]
        survived = sum(mutant.outcome == "survived" for mutant in part)
        seconds = sum(mutant.seconds for mutant in part) / len(part)
        killed = len(part) - survived
        numbers = (len(part), killed, survived, f"{100 * killed / len(part):.0f}", f"{seconds:.0f}")
        table.add_row(name, *map(str, numbers))
    return table


def main() -> None:
    """Draw mutants, test them, print the table and the survivors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree; it is not changed")
    parser.add_argument("--out", type=Path, help="folder for mutations.json")
    parser.add_argument("--list", action="store_true", help="print the mutants, test none")
    arguments = parser.parse_args()
    folders = [arguments.root / "stflow_graph" / room for room in arguments.rooms]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    names = [str(file.relative_to(arguments.root)) for file in files]
    every = [
        mutant
        for file, name in zip(files, names, strict=True)
        for mutant in mutants_of(file.read_bytes(), name)
    ]
    drawn = random.Random(arguments.seed).sample(every, min(arguments.n, len(every)))
    console = Console()
    say = functools.partial(console.print, markup=False, emoji=False, soft_wrap=True)
    say(f"{len(drawn)} of {len(every)} mutants in {len(names)} files")
    if arguments.list:
        for mutant in drawn:
            say(str(mutant))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    run_all(drawn, arguments.root, arguments.jobs, say)
    console.print(summary(drawn))
    for mutant in drawn:
        if mutant.outcome == "survived":
            say(str(mutant))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        content = [dataclasses.asdict(mutant) for mutant in drawn]
        (arguments.out / "mutations.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
