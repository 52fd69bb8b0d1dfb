"""``stflow-graph export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, show
from .paths import check_paths


def export(
    prediction: Annotated[Path, Argument(help="Prediction file of `sample`.")],
    to: Annotated[
        Path,
        Option(
            help=".csv, .csv.gz, .parquet, .zarr (SpatialData), .geojson (QuPath), .loupe.csv "
            "(Loupe Browser)."
        ),
    ],
    genes: opt.ChosenGenes = None,
    layer: Annotated[str, Option(help="mean, std or sample_0, ...")] = "mean",
    shape: Annotated[
        Literal["circle", "square", "point"], Option(help="Shape of spots in GeoJSON.")
    ] = "circle",
    overwrite: opt.Overwrite = False,
) -> None:
    """Write a prediction as a table, or for another tool."""
    store = to.name.lower().endswith(".zarr")
    check_paths(prediction, folder=to if store else None, file=None if store else to)
    from stflow_graph.stages.export import export as run

    chosen = opt.gene_names(genes)
    done = run(prediction, to, genes=chosen, layer=layer, shape=shape, overwrite=overwrite)
    add_result(done)
    show(f"{done.path}: {count(done.n_spots, 'spot')} x {count(done.n_genes, 'gene')} written")
