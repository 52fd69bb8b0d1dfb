"""``stflow-graph prepare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .prepare_display import slide_table
from .prepare_grid import grid_of
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
    grid: Annotated[
        bool, typer.Option("--grid", help="No spots: a grid over the tissue of --image.")
    ] = False,
    pitch_um: Annotated[
        float | None, typer.Option(min=0.001, help="Of the grid, µm.  [default: --patch-um]")
    ] = None,
    min_tissue: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a grid patch that must be tissue.")
    ] = 0.1,
    overwrite: Annotated[bool, typer.Option(help="Write also what is there.")] = False,
) -> None:
    """Cut patches from H&E slides: around spots (of a KIT or a single slide), or on a grid."""
    options: dict[str, Any] = {"patch_px": patch_px, "patch_um": patch_um, "overwrite": overwrite}
    if grid:
        if image is None or name is None or kit or spots or counts:
            raise typer.BadParameter("--grid takes --image and --id, no KIT, --spots or --counts")
        options |= {"um_per_px": um_per_px, "pitch_um": pitch_um, "min_tissue": min_tissue}
        grid_of(image, out, name, options)
        return
    if pitch_um is not None:
        raise typer.BadParameter("--pitch-um belongs to --grid")
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
    try:
        with spot_progress() as progress:
            run(out, **options, progress=progress, report=done.append)
    finally:
        if done:
            console.print(slide_table(done, out))
    console.print(
        f"next: stflow-graph embed {following}", style="dim", soft_wrap=True, markup=False
    )
