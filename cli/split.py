"""``stflow-graph split``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from stflow_graph.stages.split import Split


def split(
    folder: Annotated[Path, typer.Argument(metavar="DATASET", help="Data set folder.")],
    k: Annotated[int | None, typer.Option(min=2, help="Folds.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="One fold for each patient.")
    ] = False,
    table: Annotated[Path | None, typer.Option(help="Table of slides and patients.")] = None,
    group_column: Annotated[
        list[str] | None,
        typer.Option(help="What slides share, `patient` unless given; repeat it to combine."),
    ] = None,
    stratify: Annotated[str | None, typer.Option(help="Column to spread over the folds.")] = None,
    balance: Annotated[str, typer.Option(help="Even out spots or slides.")] = "spots",
    seed: Annotated[int, typer.Option(min=0, help="Decides among equal patients.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace splits that are there.")] = False,
) -> None:
    """Make folds that hold out whole patients, in HEST-bench's split files."""
    from stflow_graph.stages.split import split as run

    if (k is None) is not leave_one_out:
        raise typer.BadParameter("give --k, or --leave-one-out")
    if balance not in ("spots", "slides"):
        raise typer.BadParameter("--balance takes spots or slides")
    made = run(
        folder,
        k=k,
        table=table,
        columns=group_column or ["patient"],
        stratify=stratify,
        by_spots=balance == "spots",
        seed=seed,
        overwrite=overwrite,
    )
    console = Console()
    console.print(_table(made))
    left_out = f"; {len(made.not_there)} slides of it are not here" if made.not_there else ""
    state = "there already, the same" if made.up_to_date else "written"
    line = f"{made.folder}: {state}; patients from {made.source}{left_out}"
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(made: Split) -> Table:
    table = Table(title=f"{len(made.folds)} folds")
    for heading in ("fold", "test patients", "test slides", "spots", "training slides", "spots"):
        table.add_column(heading, justify="right" if heading == "spots" else "left")
    for fold in made.folds:
        cells = [", ".join(dict.fromkeys(sample.patient for sample in fold.test))]
        for side in (fold.test, fold.train):
            cells.append(", ".join(sample.id for sample in side))
            cells.append(str(sum(made.n_spots[sample.id] for sample in side)))
        table.add_row(str(fold.index), *map(escape, cells))
    return table
