"""``stflow-graph probe``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Group
from rich.text import Text
from typer import Option

from . import options as opt
from .display import add_result, progress, show, table

if TYPE_CHECKING:
    from stflow_graph.evaluation.encoder_probe import Cell, ProbeSettings

    Scores = dict[str, tuple[float, float]]


def probe(
    source_dataroot: opt.SourceDataroot[Path],
    embed_dataroot: opt.EmbedDataroot[Path],
    encoders: Annotated[list[str], Option(help="Encoders, one or more.")],
    out: Annotated[Path, Option(help="Output folder.")],
    datasets: opt.Datasets = None,
    method: Annotated[str, Option(help="ridge or random-forest.")] = "ridge",
    dimreduce: Annotated[Literal["pca", "none"], Option(help="none: raw embeddings.")] = "pca",
    pca: Annotated[int, Option(min=1, help="Number of principal components.")] = 256,
    alpha: Annotated[
        float | None, Option(min=0, help="Ridge penalty. (default: 100 / (columns x genes))")
    ] = None,
    gene_list: opt.GeneList[str] = "var_50genes.json",
    target: opt.Target[str] = "log1p",
    seed: opt.Seed = 1,
    allow_patient_overlap: opt.AllowPatientOverlap[bool] = False,
    weights_root: opt.WeightsRoot = None,
    batch_size: opt.PatchBatch = 64,
    device: opt.Device[str] = "auto",
    precision: opt.Precision = "auto",
    engine: opt.Engine = "auto",
    overwrite: opt.Overwrite = False,
) -> None:
    """Compare patch encoders by HEST-bench's protocol.

    Missing embeddings are computed first.
    """
    from stflow_graph.encoders import create_encoder
    from stflow_graph.evaluation.encoder_probe import ProbeSettings
    from stflow_graph.models.build import pick_device
    from stflow_graph.preparation.engine import EmbedSettings
    from stflow_graph.stages.probe import probe as run

    components = pca if dimreduce == "pca" else None
    settings = ProbeSettings(method, components, alpha, gene_list, target, seed)
    cells: list[Cell] = []

    def report(cell: Cell) -> None:
        cells.append(cell)
        add_result(cell, mean=cell.mean, std=cell.std)

    try:
        with progress() as bar:
            run(
                source_dataroot,
                embed_dataroot,
                out,
                encoders,
                settings,
                datasets=datasets or [],
                allow_patient_overlap=allow_patient_overlap,
                overwrite=overwrite,
                embed_settings=EmbedSettings(
                    batch_size, str(pick_device(device)), precision, engine=engine
                ),
                make_encoder=partial(create_encoder, weights_root=weights_root),
                progress=bar,
                report=report,
            )
    finally:
        if cells:  # though others may have failed
            _show(cells, encoders, settings, out)


def _show(
    cells: Sequence[Cell], encoders: Sequence[str], settings: ProbeSettings, out: Path
) -> None:
    from stflow_graph.encoders.catalogue import canonical_name

    show(_score_table(cells, [canonical_name(name) for name in encoders], settings))
    n_kept = sum(cell.up_to_date for cell in cells)
    kept = f", {n_kept} of {len(cells)} scores up to date" if n_kept else ""
    show(f"results: {out / 'dataset_results.json'}{kept}")


def _score_table(cells: Sequence[Cell], encoders: Sequence[str], settings: ProbeSettings) -> Group:
    """Return data sets by encoders and their average, or a single data set and its folds."""
    from stflow_graph.evaluation.hest_results import average_encoders

    scores: dict[str, Scores] = {}
    for cell in cells:
        scores.setdefault(cell.dataset, {})[cell.encoder] = (cell.mean, cell.std)
    rows = dict(scores)
    if len(scores) > 1:
        rows["average"] = {
            name: (mean, math.nan) for name, mean in average_encoders(scores).items()
        }
    else:
        for i, fold in enumerate(cells[0].fold_numbers):
            rows[f"fold {fold}"] = {c.encoder: (float(c.folds[i]), math.nan) for c in cells}
    kind = "the raw embeddings"
    if settings.n_components is not None:
        kind = f"{settings.n_components} principal components"
    return table(
        f"PCC of {settings.target}, mean over genes, {settings.method} on {kind}",
        ["", *encoders],
        [[Text(name), *_row(row, encoders)] for name, row in rows.items()],
        note="mean ± standard deviation over folds",
    )


def _row(scores: Scores, encoders: Sequence[str]) -> list[Text]:
    """Return the cells of a row, the best in bold."""
    best = max((mean for mean, _ in scores.values() if not math.isnan(mean)), default=math.nan)
    cells = []
    for mean, std in (scores.get(name, (math.nan, math.nan)) for name in encoders):
        text = "–" if math.isnan(mean) else f"{mean:.3f}"
        text += "" if math.isnan(std) else f" ± {std:.3f}"
        cells.append(Text(text, "bold" if mean == best else ""))
    return cells
