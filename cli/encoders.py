"""``stflow-graph encoders``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .encoders_display import encoder_card, encoder_table


def encoders(
    name: Annotated[str | None, typer.Argument(help="Tell all about this one.")] = None,
    weights_root: Annotated[
        Path | None, typer.Option(help="Folder of <encoder>/<file> to look in first.")
    ] = None,
) -> None:
    """List the patch encoders, their licences, and whether their weights are here."""
    from stflow_graph.encoders.catalogue import ENCODERS, entry_of

    console = Console()
    if name is not None:
        console.print(encoder_card(entry_of(name), weights_root), soft_wrap=True)
    else:
        console.print(encoder_table(list(ENCODERS.values()), weights_root))
