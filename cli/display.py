"""Output of the commands: lines, tables and progress bars, plain text wherever it comes from.

With ``--json`` lines and tables are not printed; the records of :func:`add_result` are.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text
from typer import Exit

from .document import Document

if TYPE_CHECKING:
    from stflow_graph.inference.in_range import InRange

_LOG_WIDTH = 160
_document: Document | None = None  # while a command runs with --json
_is_quiet = False  # another rank speaks


def be_quiet() -> None:
    """Print no results from now on: another process does."""
    global _is_quiet
    _is_quiet = True


def is_quiet() -> bool:
    """Return whether another rank, or the ranks that this process started, print the results."""
    return _is_quiet


def console() -> Console:
    """Return the console of standard output; a log file, which has no width, gets a wide one."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else _LOG_WIDTH)


@contextlib.contextmanager
def json_mode(command: str | None) -> Iterator[Document]:
    """Collect the results of a command in a document instead of printing them.

    All else that is printed goes to standard error, so that standard output is the document's.

    Args:
        command: its name; None if there is no such command.
    """
    global _document
    _document = Document(command)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield _document
    finally:
        _document = None


def add_result(record: object, **more: object) -> None:
    """Hand over the record of an output, a dataclass or a mapping, for ``--json``."""
    if _document is not None:
        _document.add(record, **more)


def end_with(code: int, reason: str) -> NoReturn:
    """End a command that has printed its results and failed all the same.

    Args:
        code: the exit code.
        reason: the message of ``--json``.
    """
    if _document is not None:
        _document.failure = reason
    raise Exit(code)


def show(*parts: RenderableType | None, style: str = "") -> None:
    """Print lines, unwrapped and without interpreting their content, and tables."""
    for part in () if _is_quiet or _document is not None else parts:
        if isinstance(part, str):
            console().print(Text(part, style), soft_wrap=True)
        elif part is not None:
            console().print(part)


def show_next(*words: str | Path) -> None:
    """Print the command that usually follows; of several the first is the next.

    Paths are quoted, so that it can be copied.
    """
    command = " ".join(word if isinstance(word, str) else shlex.quote(str(word)) for word in words)
    if _document is not None and _document.next is None:
        _document.next = f"stflow-graph {command}"
    show(f"next: stflow-graph {command}", style="dim")


def state(up_to_date: bool, replaced: bool = False) -> str:
    """Return the end of a sentence about an output: left as it was, or written.

    Args:
        up_to_date: it was left as it was.
        replaced: a prediction with other settings, which is gone.
    """
    if up_to_date:
        return "is up to date"
    return "written, replaced a prediction with other settings" if replaced else "written"


def range_note(in_range: InRange | None) -> str:
    """Return what to add to a slide's line: the share of its spots in range, or the verdict."""
    if in_range is None:
        return ""
    return f", {in_range.share:.0%} in range" if in_range.slide else ", OUT OF RANGE"


def show_range(slide: str, in_range: InRange | None) -> None:
    """Print a line where a slide is out of its model's range."""
    if in_range is not None and not in_range.slide:
        show(f"{slide}: unlike the slides of training: {in_range.warning()}", style="yellow")


def table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: Collection[int] = (0,),
    styles: Sequence[str] = (),
    note: str = "",
) -> Group:
    """Return a table that wraps its cells on narrow terminals and cuts nothing.

    Args:
        title: above the table.
        headings: of the columns.
        rows: cells, printed without interpreting their content.
        left: columns of text; the others hold numbers.
        styles: of the rows, if any.
        note: below the table.
    """
    body = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        justify: JustifyMethod = "left" if i in left else "right"
        body.add_column(Text(heading), justify=justify, overflow="fold")
    for i, row in enumerate(rows):
        cells = [Text(cell) if isinstance(cell, str) else cell for cell in row]
        body.add_row(*cells, style=styles[i] if styles else None)
    above = [Text(title, "italic")] if title else []
    below = [Text(note, "dim")] if note else []
    return Group(*above, body, *below)


class _SpotSpeed(ProgressColumn):
    """Spots per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} spots/s", style="dim")


@contextlib.contextmanager
def progress(unit: str = "spots") -> Iterator[Callable[..., None]]:
    """Yield a callback ``(name, done, total, note="")`` that moves a bar on standard error.

    Args:
        unit: ``"spots"`` or ``"epochs"`` of the named item, ``"bytes"`` of all items together.
    """
    amounts: dict[str, list[ProgressColumn]] = {
        "spots": [MofNCompleteColumn(), _SpotSpeed()],
        "epochs": [MofNCompleteColumn()],
        "bytes": [DownloadColumn(), TransferSpeedColumn()],
    }
    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), *amounts[unit], TimeRemainingColumn())
    screen = Console(stderr=True)
    hidden = not screen.is_terminal
    with Progress(*columns, console=screen, transient=True, disable=hidden) as bars:
        task = bars.add_task("", total=None)
        current = ""

        def move(name: str, done: int, total: int, note: str = "") -> None:
            nonlocal current
            if name != current and unit != "bytes":
                bars.reset(task)
            current = name
            bars.update(task, description=f"{name} {note}".strip(), completed=done, total=total)

        yield move
