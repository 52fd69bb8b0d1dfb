"""The progress bar of commands that go through slides spot by spot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
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
