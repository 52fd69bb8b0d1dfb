"""``stflow-graph simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, progress, show, show_next, table


def simulate(
    out: Annotated[Path, Argument(help="Output data set folder.")],
    slides: Annotated[int, Option(help="Number of slides; two per patient if they suffice.")] = 6,
    spots: Annotated[int, Option(help="Number of spots per slide.")] = 400,
    seed: Annotated[int, Option(help="Random seed; it determines every byte.")] = 0,
    folds: Annotated[int, Option(help="Number of folds, grouped by patient.")] = 3,
    stain: Annotated[
        Literal["usual", "other"], Option(help="Stain: usual, or that of another laboratory.")
    ] = "usual",
    first_slide: Annotated[
        int, Option(help="Number of the first slide: others are of other patients, same genes.")
    ] = 1,
    overwrite: opt.Overwrite = False,
) -> None:
    """Write a simulated cohort, with the true means of its counts.

    The folder has HEST-bench's layout.
    """
    from stflow_graph.simulation.cohort import simulate_cohort

    sizes = {"n_slides": slides, "n_spots": spots, "n_folds": folds, "seed": seed}
    sizes |= {"first_slide": first_slide}
    with progress() as bar:
        cohort = simulate_cohort(out, **sizes, stain=stain, overwrite=overwrite, progress=bar)
    add_result(cohort)
    patients = len({slide.patient for slide in cohort.slides})
    show(
        f"{cohort.path}: {count(slides, 'slide')} of {count(patients, 'patient')}, "
        f"{count(spots, 'spot')} each, {count(cohort.n_folds, 'fold')}"
    )
    rows = []
    for name, genes in cohort.genes.items():
        ceilings = cohort.noise_ceiling[name].values()
        rows.append([name, str(len(genes)), *("" if c is None else f"{c:.3f}" for c in ceilings)])
    show(table("", ("genes", "number", "PCC of true mean", "pooled"), rows))
    embeddings = Path(f"{out}_embeddings")
    roots = ("--source-dataroot", out, "--embed-dataroot", embeddings)
    show_next("embed", *roots, "--encoder efficientnet_lite0")
