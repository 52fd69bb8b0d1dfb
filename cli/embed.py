"""``stflow-graph embed``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .progress import spot_progress


def embed(
    patches: Annotated[list[Path] | None, typer.Argument(help="Patch files (with --out).")] = None,
    source_dataroot: Annotated[
        Path | None, typer.Option(help="HEST-bench root, or one data set folder.")
    ] = None,
    embed_dataroot: Annotated[Path | None, typer.Option(help="Root of the embeddings.")] = None,
    out: Annotated[Path | None, typer.Option(help="File or folder, for patch files.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Data sets; default all.")] = None,
    encoder: Annotated[
        str, typer.Option(help="Of `stflow-graph encoders`, a timm name, or module:factory.")
    ] = "efficientnet_lite0",
    weights: Annotated[Path | None, typer.Option(help="safetensors or state dict.")] = None,
    weights_root: Annotated[Path | None, typer.Option(help="Folder of <encoder>/<file>.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: a thread.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Embed anew what is complete.")] = False,
) -> None:
    """Turn patches into embeddings with a patch encoder."""
    by_root = source_dataroot is not None and embed_dataroot is not None
    if by_root == bool(patches and out) or (patches and (source_dataroot or embed_dataroot)):
        raise typer.BadParameter(
            "give --source-dataroot with --embed-dataroot, or patch files with --out"
        )
    from stflow_graph.encoders import create_encoder
    from stflow_graph.models.build import pick_device
    from stflow_graph.preparation.embedding import EmbedSettings, embed_files
    from stflow_graph.stages.embed import embed as run

    console = Console()
    network = create_encoder(encoder, weights, weights_root)
    settings = EmbedSettings(batch_size, str(pick_device(device)), precision, workers)
    began = time.perf_counter()
    with spot_progress() as progress:
        if source_dataroot and embed_dataroot:
            done = run(
                source_dataroot,
                embed_dataroot,
                network,
                settings,
                datasets=datasets or [],
                overwrite=overwrite,
                progress=progress,
            )
        else:
            folder = out is not None and (out.suffix != ".h5" or len(patches or []) > 1)
            jobs = [(p, out / f"{p.stem}.h5" if folder else out) for p in patches or [] if out]
            done = embed_files(jobs, network, settings, overwrite=overwrite, progress=progress)
    seconds = time.perf_counter() - began
    for slide in done:
        state = "is there already" if slide.up_to_date else "written"
        blank = f", {slide.n_blank} blank" if slide.n_blank else ""
        console.print(
            f"{slide.slide}: {slide.n_spots} spots{blank}: {slide.path} {state}",
            soft_wrap=True,
            highlight=False,
        )
    if n := sum(slide.n_spots for slide in done if not slide.up_to_date):
        console.print(
            f"{n:,} patches in {seconds:.1f} s: {n / seconds:,.1f} patches/s, {network.name} on "
            f"{settings.device}",
            highlight=False,
        )
