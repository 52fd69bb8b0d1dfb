"""``stflow-graph prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from .prepare_display import slide_table
from .prepare_grid import grid_of
from .progress import spot_progress

if TYPE_CHECKING:
    from stflow_graph.stages.prepare import Prepared

Option = typer.Option
FORMATS = "kit, visium, visium-hd, xenium, hest, stimage, legacy-st, spatialdata"
GeneNames = Literal["symbols", "ids"]


def prepare(
    out: Annotated[Path, Option(help="Data set folder to write.")],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE",
            help="Folder: Space Ranger's outs/ (Visium, HD), Xenium, HEST-1k, STimage-1K4M, "
            "legacy ST, SpatialData .zarr, or a kit with dataset.csv.",
        ),
    ] = None,
    image: Annotated[Path | None, Option(help="H&E image of one slide, full resolution.")] = None,
    spots: Annotated[Path | None, Option(help="Without SOURCE: its spot table.")] = None,
    counts: Annotated[Path | None, Option(help="Without SOURCE: its counts, or .h5ad.")] = None,
    um_per_px: Annotated[float | None, Option(help="Its micrometres per pixel.")] = None,
    name: Annotated[str | None, Option("--id", help="Its name, or which one of SOURCE.")] = None,
    format: Annotated[
        str | None, Option(help=f"What SOURCE is, else its files tell: {FORMATS}.")
    ] = None,
    gene_names: Annotated[GeneNames, Option(help="What names 10x's genes.")] = "symbols",
    bin_um: Annotated[int | None, Option(help="Visium HD's bins, µm.  [default: 8]")] = None,
    alignment: Annotated[Path | None, Option(help="Xenium: H&E alignment matrix, csv.")] = None,
    patch_px: Annotated[int, Option(min=8, max=4096, help="Edge of a patch, px.")] = 224,
    patch_um: Annotated[float, Option(min=0.001, help="Edge of what it shows, µm.")] = 112,
    grid: Annotated[bool, Option("--grid", help="No spots: a grid over --image's tissue.")] = False,
    pitch_um: Annotated[
        float | None, Option(min=0.001, help="Of the grid, µm.  [default: --patch-um]")
    ] = None,
    min_tissue: Annotated[
        float, Option(min=0, max=1, help="Share of a grid patch that must be tissue.")
    ] = 0.1,
    overwrite: Annotated[bool, Option(help="Write also what is there.")] = False,
) -> None:
    """Cut patches around the spots of H&E slides, or on a grid: of SOURCE, or of named files."""
    shared: dict[str, Any] = {"patch_px": patch_px, "patch_um": patch_um, "overwrite": overwrite}
    if grid:
        if image is None or name is None or source or spots or counts:
            raise typer.BadParameter("--grid takes --image and --id, no SOURCE, --spots, --counts")
        shared |= {"um_per_px": um_per_px, "pitch_um": pitch_um, "min_tissue": min_tissue}
        grid_of(image, out, name, shared)
        return
    if pitch_um is not None:
        raise typer.BadParameter("--pitch-um belongs to --grid")
    from stflow_graph.platforms.source import SourceOptions, tables_source
    from stflow_graph.stages.prepare import prepare as run

    done: list[Prepared] = []
    console = Console()
    shared["report"] = done.append
    embeddings = out.parent / "embeddings"
    following = f"--source-dataroot {out} --embed-dataroot {embeddings}"
    try:
        with spot_progress() as progress:
            shared["progress"] = progress
            if source is not None and spots is None and counts is None:
                options = SourceOptions(name, image, um_per_px, gene_names, bin_um, alignment)
                shared["notice"] = lambda line: console.print(line, highlight=False, markup=False)
                run(source, out, options, format=format, **shared)
            elif source is None and image and counts and name and format is None:
                run(tables_source(name, image, spots, counts, um_per_px), out, **shared)
                following = f"{out}/patches/{name}.h5 --out {embeddings}/{name}.h5"
            else:
                raise typer.BadParameter("give SOURCE, or --image, --counts and --id of one slide")
    finally:
        if done:
            console.print(slide_table(done, out))
    console.print(
        f"next: stflow-graph embed {following}", style="dim", soft_wrap=True, markup=False
    )
