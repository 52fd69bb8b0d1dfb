"""``stflow-graph simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .progress import spot_progress

if TYPE_CHECKING:
    from stflow_graph.simulation.cohort import SimulatedCohort


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    slides: Annotated[int, typer.Option(help="Slides, two a patient.")] = 6,
    spots: Annotated[int, typer.Option(help="Spots of each slide.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed; the same gives the same bytes.")] = 0,
    folds: Annotated[int, typer.Option(help="Folds, by patient.")] = 3,
    overwrite: Annotated[bool, typer.Option(help="Replace a cohort that is there.")] = False,
) -> None:
    """Write a simulated cohort in HEST-bench layout, with the truth behind its counts."""
    from stflow_graph.simulation.cohort import simulate_cohort

    console = Console()
    with spot_progress() as progress:
        sizes = {"n_slides": slides, "n_spots": spots, "n_folds": folds, "seed": seed}
        cohort = simulate_cohort(out, **sizes, overwrite=overwrite, progress=progress)
    patients = len({slide.patient for slide in cohort.slides})
    console.print(
        f"{cohort.path}: {slides} slides of {patients} patients, {spots} spots each, "
        f"{cohort.n_folds} folds",
        soft_wrap=True,
        highlight=False,
    )
    console.print(_table(cohort))
    console.print(
        f"next: stflow-graph embed --source-dataroot {out} --embed-dataroot {out}_embeddings "
        "--encoder efficientnet_lite0",
        style="dim",
        soft_wrap=True,
    )


def _table(cohort: SimulatedCohort) -> Table:
    table = Table("genes", "number", "noise ceiling", "pooled")
    for name, genes in cohort.genes.items():
        shown = ["" if c is None else f"{c:.3f}" for c in cohort.noise_ceiling[name].values()]
        table.add_row(name, str(len(genes)), *shown)
    return table
