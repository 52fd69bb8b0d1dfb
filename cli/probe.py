"""``stflow-graph probe``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .probe_display import score_tables
from .progress import spot_progress

if TYPE_CHECKING:
    from stflow_graph.evaluation.encoder_probe import Cell


def probe(
    source_dataroot: Annotated[Path, typer.Option(help="HEST-bench root or data set.")],
    embed_dataroot: Annotated[Path, typer.Option(help="Root of the embeddings.")],
    encoders: Annotated[list[str], typer.Option(help="Encoders, one or more.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    datasets: Annotated[list[str] | None, typer.Option(help="Data sets; default all.")] = None,
    method: Annotated[str, typer.Option(help="ridge or random-forest.")] = "ridge",
    dimreduce: Annotated[str, typer.Option(help="pca, or none: embeddings as are.")] = "pca",
    pca: Annotated[int, typer.Option(min=1, help="Principal components.")] = 256,
    alpha: Annotated[
        float | None, typer.Option(min=0, help="Penalty; default 100 / (columns x genes).")
    ] = None,
    gene_list: Annotated[str, typer.Option(help="JSON with the genes.")] = "var_50genes.json",
    target: Annotated[str, typer.Option(help="log1p or log1p_normalised.")] = "log1p",
    seed: Annotated[int, typer.Option(min=0, help="Seed of PCA and forest.")] = 1,
    allow_patient_overlap: Annotated[
        bool, typer.Option("--allow-patient-overlap", help="Patients on both sides of a fold.")
    ] = False,
    weights_root: Annotated[Path | None, typer.Option(help="Folder of <encoder>/<file>.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches at a time.")] = 64,
    device: Annotated[str, typer.Option(help="To embed on: auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Score anew what is there.")] = False,
) -> None:
    """Compare patch encoders as HEST-bench does; embeds what is missing first."""
    if dimreduce not in ("pca", "none"):
        raise typer.BadParameter(f"--dimreduce {dimreduce!r}: expected pca or none")
    from stflow_graph.encoders import create_encoder
    from stflow_graph.encoders.catalogue import canonical_name
    from stflow_graph.evaluation.encoder_probe import ProbeSettings
    from stflow_graph.models.build import pick_device
    from stflow_graph.preparation.embedding import EmbedSettings
    from stflow_graph.stages.probe import probe as run

    components = pca if dimreduce == "pca" else None
    settings = ProbeSettings(method, components, alpha, gene_list, target, seed)
    cells: list[Cell] = []
    try:
        with spot_progress() as progress:
            run(
                source_dataroot,
                embed_dataroot,
                out,
                encoders,
                settings,
                datasets=datasets or [],
                allow_patient_overlap=allow_patient_overlap,
                overwrite=overwrite,
                embed_settings=EmbedSettings(batch_size, str(pick_device(device)), precision),
                make_encoder=partial(create_encoder, weights_root=weights_root),
                progress=progress,
                report=cells.append,
            )
    finally:  # some cells may have failed; the others are worth a look all the same
        if cells:
            # a log file has no width to keep to
            console = Console(width=None if sys.stdout.isatty() else 160)
            names = [canonical_name(name) for name in encoders]
            console.print(score_tables(cells, names, settings))
            n_kept = sum(cell.up_to_date for cell in cells)
            kept = f", {n_kept} of {len(cells)} scores there already" if n_kept else ""
            line = f"results: {out / 'dataset_results.json'}{kept}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)
