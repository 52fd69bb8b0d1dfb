"""``stflow-graph eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from .evaluate_display import measure_table, score_table, slide_table


def evaluate(
    predictions: Annotated[list[Path], typer.Argument(help="Files of `sample`, or folders.")],
    truth: Annotated[Path, typer.Option(help="Measured .h5ad, or a folder of <slide>.h5ad.")],
    out: Annotated[Path, typer.Option(help="Folder of metrics.json, metrics.csv, report.html.")],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Fit and score the baselines of the same folds.")
    ] = False,
    slow_baselines: Annotated[
        bool, typer.Option("--slow-baselines", help="Random forest and simple GNN as well.")
    ] = False,
    source_dataroot: Annotated[
        Path | None, typer.Option(help="Root of the training slides, if it has moved.")
    ] = None,
    embed_dataroot: Annotated[
        Path | None, typer.Option(help="Root of their embeddings, if it has moved.")
    ] = None,
    gene_aliases: Annotated[
        Path | None, typer.Option(help="Table of gene names, or a GTF, if truth has others.")
    ] = None,
    duplicate_genes: Annotated[str, typer.Option(help="refuse, sum or first.")] = "refuse",
    n_bootstrap: Annotated[int, typer.Option(min=1, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
) -> None:
    """Score predictions against measured expression, beside baselines; write a report."""
    from stflow_graph.io.gene_aliases import gene_matching
    from stflow_graph.stages.evaluate import evaluate as run

    # a log file has no width to keep to
    console = Console(width=None if sys.stdout.isatty() else 160)
    with Console(stderr=True).status("reading") as status:
        found = run(
            predictions,
            truth,
            out,
            baselines=baselines,
            slow_baselines=slow_baselines,
            source_dataroot=source_dataroot,
            embed_dataroot=embed_dataroot,
            matching=gene_matching(gene_aliases, duplicate_genes),
            n_bootstrap=n_bootstrap,
            seed=seed,
            progress=lambda doing: status.update(Text(doing)),
        )
    for table in (score_table(found), slide_table(found), measure_table(found)):
        if table is not None:
            console.print(table)
    for protocol in found.protocols:
        console.print(Text(f"protocol: {protocol}"), soft_wrap=True)
    for slide in found.slides:
        line = f"{slide.name}: {len(slide)} of {slide.n_predicted} predicted spots scored"
        console.print(Text(line), soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(Text(f"report: {out / 'report.html'}"), soft_wrap=True)
