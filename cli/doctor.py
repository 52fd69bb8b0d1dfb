"""``stflow-graph doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Group
from rich.text import Text
from typer import Argument, Option

from . import options as opt
from .display import add_result, end_with, show, table

if TYPE_CHECKING:
    from stflow_graph.stages.doctor import Check

_STYLES = {"ok": "green", "absent": "dim", "failed": "bold red"}


def doctor(
    folder: Annotated[Path, Argument(help="Folder for results; it is tested.")] = Path(),
    source_dataroot: opt.SourceDataroot[Path | None] = None,
    encoder: Annotated[str, Option(help="Encoder of the embeddings of that data set.")] = (
        "efficientnet_lite0"
    ),
    weights_root: opt.WeightsRoot = None,
) -> None:
    """Check the installation, the machine and a folder.

    The exit code is 0 if nothing failed; what is absent is optional.
    """
    from stflow_graph.stages.doctor import examine

    checks = examine(
        folder, weights_root=weights_root, source_dataroot=source_dataroot, encoder=encoder
    )
    for check in checks:
        add_result(check)
    show(_table(checks))
    failed = [check for check in checks if check.state == "failed"]
    if failed:
        end_with(failed[0].exit_code, f"{failed[0].subject}: {failed[0].found}")


def _table(checks: list[Check]) -> Group:
    rows: list[list[str | Text]] = [
        [
            check.subject,
            Text(check.state, _STYLES[check.state]),
            check.found + (f". Fix: {check.fix}" if check.fix else ""),
        ]
        for check in checks
    ]
    return table("", ("part", "state", "found"), rows, left=(0, 1, 2))
