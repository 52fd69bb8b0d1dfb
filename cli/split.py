"""``stflow-graph split``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Group
from typer import Argument, BadParameter, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, show, show_next, state, table

if TYPE_CHECKING:
    from stflow_graph.stages.split import Split


def split(
    folder: Annotated[Path, Argument(metavar="DATASET", help="Data set folder.")],
    k: Annotated[int | None, Option(min=2, help="Number of folds.")] = None,
    leave_one_out: Annotated[bool, Option("--leave-one-out", help="One fold per patient.")] = False,
    patients: Annotated[Path | None, Option("--table", help="Table of patients.")] = None,
    group_column: Annotated[
        list[str] | None,
        Option(help="Column that groups slides; repeat it to combine. (default: patient)"),
    ] = None,
    stratify: Annotated[str | None, Option(help="Column to spread over the folds.")] = None,
    balance: Annotated[Literal["spots", "slides"], Option(help="Balanced quantity.")] = "spots",
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
) -> None:
    """Write cross-validation folds that hold out whole patients.

    The split files are HEST-bench's.
    """
    from stflow_graph.stages.split import split as run

    if (k is None) is not leave_one_out:
        raise BadParameter("give --k, or --leave-one-out")
    done = run(
        folder,
        k=k,
        table=patients,
        columns=group_column or ["patient"],
        stratify=stratify,
        by_spots=balance == "spots",
        seed=seed,
        overwrite=overwrite,
    )
    add_result(done)
    show(_fold_table(done))
    absent = f"; {len(done.not_there)} of its slides are absent" if done.not_there else ""
    show(f"{done.folder} {state(done.up_to_date)}; patients from {done.source}{absent}")
    show_next("genes", folder)


def _fold_table(done: Split) -> Group:
    rows = []
    for fold in done.folds:
        cells = [str(fold.index), ", ".join(dict.fromkeys(s.patient for s in fold.test))]
        for side in (fold.test, fold.train):
            cells.append(", ".join(sample.id for sample in side))
            cells.append(str(sum(done.n_spots[sample.id] for sample in side)))
        rows.append(cells)
    headings = ("fold", "test patients", "test slides", "spots", "training slides", "spots")
    return table(count(len(done.folds), "fold"), headings, rows, left=(0, 1, 2, 4))
