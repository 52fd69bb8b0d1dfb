"""``stflow-graph prepare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .prepare_display import slide_table
from .progress import spot_progress

if TYPE_CHECKING:
    from stflow_graph.prepare import Prepared


def prepare(
    out: Annotated[Path, typer.Option(help="Data set folder to write.")],
    kit: Annotated[
        Path | None, typer.Argument(metavar="KIT", help="Folder with dataset.csv.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Image of a single slide.")] = None,
    spots: Annotated[Path | None, typer.Option(help="Its spot table, csv or tsv.")] = None,
    counts: Annotated[Path | None, typer.Option(help="Its counts, table or .h5ad.")] = None,
    um_per_px: Annotated[float | None, typer.Option(help="Its micrometres per pixel.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="Its name.")] = None,
    patch_px: Annotated[int, typer.Option(min=8, max=4096, help="Edge of a patch, px.")] = 224,
    patch_um: Annotated[float, typer.Option(min=0.001, help="Edge of what it shows, µm.")] = 112,
    overwrite: Annotated[bool, typer.Option(help="Write also what is there.")] = False,
) -> None:
    """Cut patches around the spots of H&E slides: of a kit (KIT), or of a single slide."""
    from stflow_graph.prepare import prepare_kit, prepare_slide

    run: Callable[..., object]
    embeddings = out.parent / "embeddings"
    if kit is not None and (image, spots, counts, um_per_px, name) == (None,) * 5:
        run = partial(prepare_kit, kit)
        following = f"--source-dataroot {out} --embed-dataroot {embeddings}"
    elif kit is None and image is not None and counts is not None and name is not None:
        run = partial(prepare_slide, image, spots, counts, name=name, um_per_px=um_per_px)
        following = f"{out}/patches/{name}.h5 --out {embeddings}/{name}.h5"
    else:
        raise typer.BadParameter("give KIT, or --image, --counts and --id of a single slide")
    done: list[Prepared] = []
    console = Console()
    options: dict[str, Any] = {"patch_px": patch_px, "patch_um": patch_um, "overwrite": overwrite}
    try:
        with spot_progress() as progress:
            run(out, **options, progress=progress, report=done.append)
    finally:
        if done:
            console.print(slide_table(done, out))
    console.print(
        f"next: stflow-graph embed {following}", style="dim", soft_wrap=True, markup=False
    )
