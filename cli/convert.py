"""``stflow-graph convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of the public STFlow code.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    denoiser: Annotated[str, typer.Option(help="graph (faster) or transformer.")] = "graph",
    gene_list: Annotated[
        Path | None, typer.Option(help="The model's genes (var_50genes.json), in its order.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="Encoder of its embeddings.")] = "",
    n_neighbors: Annotated[int, typer.Option(min=1, help="k it was trained with.")] = 8,
    n_heads: Annotated[int | None, typer.Option(min=1, help="To check.")] = None,
) -> None:
    """Make a public STFlow checkpoint one of ours, the same function."""
    from stflow_graph.models.stflow_weights import KINDS, convert_stflow

    if denoiser not in KINDS:
        raise typer.BadParameter(f"{denoiser!r}: one of {', '.join(KINDS)}")
    done = convert_stflow(
        checkpoint,
        out,
        kind=denoiser,
        gene_list=gene_list,
        encoder=encoder,
        n_neighbors=n_neighbors,
        n_heads=n_heads,
    )
    options = done.config.denoiser.model_dump()
    edge_channels = options.get("edge_channels") or options["conv_options"]["edge_channels"]
    console = Console()
    console.print(
        f"{out}: {options['name']} denoiser, {done.in_channels} channels in, "
        f"{len(done.genes)} genes, "
        f"D {options['hidden_channels']}, D_e {edge_channels}, H {options['n_heads']}, "
        f"L {options['n_layers']}",
        soft_wrap=True,
        highlight=False,
    )
    if gene_list is None:
        console.print(
            "genes are named gene_0, gene_1, ...: --gene-list names them, which eval needs",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"next: stflow-graph sample {out} EMB.h5 --out PREDICTIONS", style="dim")
