"""``stflow-graph sample``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from stflow_graph.stages.sample import Sampled


def _tile_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of spots >= 1")
    return int(text)


def sample(
    source: Annotated[Path, typer.Argument(help="Run, fold or checkpoint folder.")],
    embeddings: Annotated[list[Path], typer.Argument(help="Embedding files or folders.")],
    out: Annotated[Path, typer.Option(help="Folder of the predictions.")],
    n_samples: Annotated[int, typer.Option(min=1, help="Samples; 1: the mean.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="euler, heun, stflow, estflow.")] = None,
    n_sample_steps: Annotated[int | None, typer.Option(min=1, help="Network calls.")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of the run to use.")] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(parser=_tile_size, help="Spots worked on at a time, or auto: by memory."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="H&E image, or folder of <slide>.jpg: to draw on.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Write also what is there.")] = False,
) -> None:
    """Predict the expression of slides from their embeddings."""
    from stflow_graph.inference.settings import SampleSettings
    from stflow_graph.stages.sample import sample as run

    console = Console()

    def show(done: Sampled) -> None:
        state = "is there already" if done.up_to_date else "written"
        fold = "" if done.fold is None else f", fold {done.fold}"
        fold += ", which held it out" if done.held_out else ""
        console.print(
            f"{done.slide}: {done.n_spots} spots{fold}: {done.path} {state}",
            soft_wrap=True,
            highlight=False,
        )

    settings = SampleSettings(
        n_samples, seed, sampler, n_sample_steps, fold, device, tile_size, image
    )
    run(source, embeddings, out, settings, overwrite=overwrite, report=show)
    console.print(
        f"next: stflow-graph eval {out}/*.h5ad --truth ADATA --out {out.parent / 'eval'} "
        "--baselines",
        style="dim",
        soft_wrap=True,
    )
