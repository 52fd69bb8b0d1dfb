"""The progress bars: of slides spot by spot, of files byte by byte."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
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
from rich.text import Text


class _Speed(ProgressColumn):
    """Spots per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} spots/s", style="dim")


@contextlib.contextmanager
def spot_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback that shows a slide's name, its spots done and all its spots."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(slide: str, done: int, total: int) -> None:
            if slide not in tasks:
                tasks[slide] = bars.add_task(slide, total=total)
            bars.update(tasks[slide], completed=done)

        yield show


@contextlib.contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback that shows a file's name and how much of all files is there, in bytes."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("listing", total=None)

        def show(file: str, done: int, total: int) -> None:
            bars.update(task, description=file, completed=done, total=total)

        yield show
