"""Reading mutants in a child process with limits, and what came of each.

The child is forked once all libraries are loaded and reads mutant after mutant; where it dies, that
mutant is noted and another child goes on with the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from faults.mutants import choice, mutate

from stflow_graph.errors import StflowError, is_out_of_memory

SAME, REFUSED, CHANGED = "same", "refused", "changed"
TRACEBACK, CRASH, HANG, MEMORY = "traceback", "crash", "hang", "memory"
OUTCOMES = (SAME, REFUSED, CHANGED, TRACEBACK, CRASH, HANG, MEMORY)
HEADER = f"{'format':<24}{'mutants':>8}" + "".join(f"{o:>10}" for o in OUTCOMES) + f"{'seconds':>9}"
MAX_SECONDS = 10.0
_MAX_MEMORY = 3 * 2**29  # beyond what the process had when it was forked
_MAX_MESSAGE = 2500


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of files, and their reader.

    Attributes:
        name: for people.
        write: writes valid files into an empty folder.
        read: reads them; what it returns is compared.
        own: whether the files are this package's own, of which no mutant may read as other data.
        files: patterns of those that are mutated.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    own: bool = False
    files: tuple[str, ...] = ("**/*",)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of a mutant: its number, an outcome, and a text about it."""

    number: int
    outcome: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.number}: {self.outcome}: {self.text}"


@dataclasses.dataclass
class Tally:
    """The outcomes of a format's mutants."""

    format: Format
    counts: Counter[str]
    failures: list[Trial]
    seconds: float

    def row(self) -> str:
        cells = "".join(f"{self.counts[o]:>10}" for o in OUTCOMES)
        total = self.counts.total()
        return f"{self.format.name:<24}{total:>8}{cells}{self.seconds:>9.1f}"


def digest(value: object) -> str:
    """Return a hash of plain values, arrays, tensors and records of them."""
    total = hashlib.sha256()
    _add(total, value)
    return total.hexdigest()


def _add(total: Any, value: Any) -> None:
    total.update(type(value).__name__.encode())
    if dataclasses.is_dataclass(value):
        _add(total, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, np.ndarray) and value.dtype != object:
        total.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
    elif sp.issparse(value):
        _add(total, [value.shape, value.toarray()])
    elif isinstance(value, Mapping):
        _add(total, sorted(((str(k), v) for k, v in value.items()), key=lambda item: item[0]))
    elif isinstance(value, list | tuple | np.ndarray):
        for item in value:
            _add(total, item)
    elif hasattr(value, "detach"):
        if value.dtype.is_floating_point and value.layout is not None:
            value = (
                value.detach().to_dense() if value.layout.__str__() != "torch.strided" else value
            )
        _add(total, value.detach().float().numpy())
    elif hasattr(value, "state_dict"):
        _add(total, value.state_dict())
    else:
        total.update(repr(value).encode("utf-8", "surrogatepass"))


def mutant(folder: Path, format: Format, originals: Path, seed: int, number: int) -> str:
    """Write a mutant of a format's files; return the name of the file that differs."""
    shutil.copytree(originals, folder)
    files = sorted({f for pattern in format.files for f in folder.glob(pattern) if f.is_file()})
    rng = np.random.default_rng([seed, zlib.crc32(format.name.encode()), number])
    file = choice(rng, files)
    file.write_bytes(mutate(file.name, file.read_bytes(), rng))
    return str(file.relative_to(folder))


def attempt(read: Callable[[Path], object], folder: Path, expected: str) -> tuple[str, str]:
    """Read a folder; return the outcome and a text about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = SAME if digest(read(folder)) == expected else CHANGED
        return outcome, ""
    except StflowError as error:
        text = str(error)
        if is_out_of_memory(error):
            return MEMORY, text
        if error.exit_code not in (3, 4) or not text.isprintable() or len(text) > _MAX_MESSAGE:
            return TRACEBACK, f"exit code {error.exit_code}, {text[:300]!r}"
        return REFUSED, text
    except Exception as error:
        if is_out_of_memory(error):
            return MEMORY, repr(error)
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/stflow_graph/" in f.filename] or list(frames)
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        last = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        return TRACEBACK, f"{type(error).__name__}: {str(error)[:150]} at {place}, in {last}"


@contextlib.contextmanager
def originals_of(format: Format) -> Iterator[tuple[Path, str]]:
    """Yield a folder of a format's files and the digest of what is read from them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        result = Path(temporary) / "digest"
        child = os.fork()  # libraries start threads, which a process that forks must not have
        if child == 0:
            try:
                tempfile.tempdir = temporary  # nothing is removed at the end of a child
                format.write(folder)
                result.write_text(digest(format.read(folder)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        yield folder, result.read_text()


def run_format(format: Format, n: int, seed: int = 0, seconds: float | None = None) -> Tally:
    """Read mutants 0 to n - 1 of a format, or as many as the time allows."""
    start, trials = time.monotonic(), list[Trial]()
    with originals_of(format) as (originals, expected):
        while len(trials) < n:
            new = _run_child(format, originals, expected, seed, len(trials), n, seconds)
            if not new:
                raise RuntimeError(f"{format.name}: mutant {len(trials)} was not made")
            trials += new
            if seconds is not None and time.monotonic() - start > seconds:
                break
    bad = {TRACEBACK, CRASH, HANG, MEMORY} | ({CHANGED} if format.own else set())
    failures = [trial for trial in trials if trial.outcome in bad]
    counts = Counter(trial.outcome for trial in trials)
    return Tally(format, counts, failures, time.monotonic() - start)


def _run_child(
    format: Format,
    originals: Path,
    expected: str,
    seed: int,
    first: int,
    n: int,
    seconds: float | None,
) -> list[Trial]:
    """Read mutants in a forked child until it dies or is done; the last may be its death."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _serve(format, originals, expected, seed, range(first, n), seconds, writing)
        finally:
            os._exit(0)
    os.close(writing)
    trials = []
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            number, outcome, text = line.rstrip("\n").split("\t", 2)
            if outcome == "begun":
                trials.append(Trial(int(number), CRASH, text))
            else:
                trials[-1] = Trial(int(number), outcome, f"{trials[-1].text}: {text}")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and trials:
        last = trials[-1]
        name = signal.Signals(os.WTERMSIG(status)).name
        outcome = HANG if name == "SIGALRM" else CRASH
        trials[-1] = Trial(last.number, outcome, f"{last.text}: {name}")
    return trials


def _serve(
    format: Format,
    originals: Path,
    expected: str,
    seed: int,
    numbers: range,
    seconds: float | None,
    output: int,
) -> None:
    """Read mutants one after another and write what came of each; in the child."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)  # libraries in C write there
    tempfile.tempdir = str(originals.parent)
    start = time.monotonic()
    for number in numbers:
        if seconds is not None and time.monotonic() - start > seconds:
            return
        # a folder of its own: HDF5 knows an open file by its inode
        folder = originals.parent / f"mutant-{number}"
        name = mutant(folder, format, originals, seed, number)
        os.write(output, f"{number}\tbegun\t{name}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        outcome, text = attempt(format.read, folder, expected)
        signal.setitimer(signal.ITIMER_REAL, 0)
        text = " ".join(text.encode("utf-8", "replace").decode().split())
        os.write(output, f"{number}\t{outcome}\t{text[:400]}\n".encode())
        shutil.rmtree(folder, ignore_errors=True)
