"""``stflow-graph convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, show, show_next


def convert(
    checkpoint: Annotated[Path, Argument(help="Weights of the public STFlow code.")],
    out: Annotated[Path, Argument(help="Output checkpoint folder.")],
    denoiser: Annotated[Literal["graph", "transformer"], Option(help="graph is faster.")] = "graph",
    gene_list: opt.GeneList[Path | None] = None,
    encoder: Annotated[str, Option(help="Encoder of its embeddings.")] = "",
    n_neighbors: Annotated[
        int, Option(min=1, max=1000, help="Number of neighbours in training.")
    ] = 8,
    n_heads: Annotated[
        int | None, Option(min=1, max=512, help="Number of heads, checked against the file.")
    ] = None,
) -> None:
    """Convert a public STFlow checkpoint.

    The converted model computes the same function.
    """
    from stflow_graph.models.stflow_weights import convert_stflow

    model = convert_stflow(
        checkpoint,
        out,
        kind=denoiser,
        gene_list=gene_list,
        encoder=encoder,
        n_neighbors=n_neighbors,
        n_heads=n_heads,
    )
    sizes = model.config.denoiser.model_dump()
    edge_channels = sizes.get("edge_channels") or sizes["conv_options"]["edge_channels"]
    add_result(
        {"path": out, "denoiser": sizes["name"], "in_channels": model.in_channels},
        n_genes=len(model.genes),
        genes_named=gene_list is not None,
    )
    show(
        f"{out}: {sizes['name']} denoiser, {model.in_channels} input channels, "
        f"{count(len(model.genes), 'gene')}, D {sizes['hidden_channels']}, D_e {edge_channels}, "
        f"H {sizes['n_heads']}, L {sizes['n_layers']}"
    )
    if gene_list is None:
        note = "genes are named gene_0, gene_1, ...; eval needs their names (--gene-list)"
        show(note, style="yellow")
    show_next("sample", out, "EMB.h5 --out PREDICTIONS")
