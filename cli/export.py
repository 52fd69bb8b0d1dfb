"""``stflow-graph export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    prediction: Annotated[Path, typer.Argument(help="A file of `sample`.")],
    to: Annotated[Path, typer.Option(help="File.csv, .csv.gz, .parquet, or .zarr (SpatialData).")],
    genes: Annotated[list[str] | None, typer.Option(help="Genes wanted; default all.")] = None,
    layer: Annotated[str, typer.Option(help="mean, std or sample_0, ...")] = "mean",
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Write a prediction as a table of spots x genes for other tools."""
    from stflow_graph.stages.export import export as run

    done = run(prediction, to, genes=genes or [], layer=layer, overwrite=overwrite)
    Console().print(
        f"{done.path}: {done.n_spots:,} spots x {done.n_genes} genes written",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
