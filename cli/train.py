"""``stflow-graph train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .settings import parse_settings

Text = str | None
Whole = int | None


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    source_dataroot: Annotated[Text, typer.Option(help="HEST-bench root or data set.")] = None,
    embed_dataroot: Annotated[Text, typer.Option(help="Root of the embeddings.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Data sets, one or more.")] = None,
    encoder: Annotated[Text, typer.Option(help="Encoder of the embeddings.")] = None,
    gene_list: Annotated[Text, typer.Option(help="JSON file with the genes.")] = None,
    target: Annotated[Text, typer.Option(help="log1p or log1p_normalised.")] = None,
    allow_patient_overlap: Annotated[
        bool | None,
        typer.Option("--allow-patient-overlap", help="Test patients may be in training."),
    ] = None,
    gene_aliases: Annotated[Text, typer.Option(help="Table of gene names, or a GTF.")] = None,
    duplicate_genes: Annotated[Text, typer.Option(help="refuse, sum or first.")] = None,
    denoiser: Annotated[Text, typer.Option(help="graph or transformer.")] = None,
    n_layers: Annotated[Whole, typer.Option(help="Blocks of the denoiser.")] = None,
    n_heads: Annotated[Whole, typer.Option(help="Attention heads.")] = None,
    hidden_channels: Annotated[Whole, typer.Option(help="Width of the denoiser.")] = None,
    n_neighbors: Annotated[Whole, typer.Option(help="k of the spatial graph.")] = None,
    prior: Annotated[Text, typer.Option(help="zinb, gaussian or zero.")] = None,
    sampler: Annotated[Text, typer.Option(help="euler, heun, stflow or estflow.")] = None,
    n_sample_steps: Annotated[Whole, typer.Option(help="Network calls a sample.")] = None,
    batch_size: Annotated[Whole, typer.Option(help="Regions a training step.")] = None,
    max_spots_per_batch: Annotated[
        Whole, typer.Option(help="Spots a training step; larger slides are learned in parts.")
    ] = None,
    epochs: Annotated[Whole, typer.Option(help="Most epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    members: Annotated[Whole, typer.Option(help="Denoisers whose mean is used.")] = None,
    seed: Annotated[Whole, typer.Option(help="Seed of everything random.")] = None,
    folds: Annotated[list[int] | None, typer.Option(help="Folds, one or more.")] = None,
    device: Annotated[Text, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; options win.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.name=value ...")] = None,
    overwrite: Annotated[bool, typer.Option(help="Train anew where a run exists.")] = False,
) -> None:
    """Train a denoiser on every fold; run it again to go on where it stopped."""
    given = dict(locals())
    from stflow_graph.config import load_config
    from stflow_graph.stages.train import train as run

    from .train_display import TrainDisplay

    resolved = load_config(config, parse_settings(given, set_ or []))
    with TrainDisplay(resolved) as display:
        results = run(resolved, out, overwrite=overwrite, report=display.update)
    display.summary(results, out)
