"""``stflow-graph prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Group
from typer import Argument, BadParameter, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, progress, show, show_next, state, table

if TYPE_CHECKING:
    from stflow_graph.platforms.source import SlideSource
    from stflow_graph.stages.prepare import Prepared

FORMATS = "kit, visium, visium-hd, xenium, hest, stimage, legacy-st, spatialdata"
SOURCE = (
    "Folder of Space Ranger (outs/ of Visium, HD), Xenium, HEST-1k, STimage-1K4M, legacy ST, "
    "a SpatialData .zarr, or a kit with dataset.csv."
)


def prepare(
    out: Annotated[Path, Option(help="Output data set folder.")],
    source: Annotated[Path | None, Argument(metavar="SOURCE", help=SOURCE)] = None,
    image: Annotated[Path | None, Option(help="Full-resolution H&E image of one slide.")] = None,
    spots: Annotated[Path | None, Option(help="Without SOURCE: its spot table.")] = None,
    counts: Annotated[Path | None, Option(help="Without SOURCE: its counts, or .h5ad.")] = None,
    um_per_px: Annotated[float | None, Option(help="Its micrometres per pixel.")] = None,
    name: Annotated[
        str | None, Option("--id", help="Its name, or the slide of SOURCE to prepare.")
    ] = None,
    format: Annotated[
        str | None, Option(help=f"Format of SOURCE: {FORMATS}. (default: detected)")
    ] = None,
    gene_names: Annotated[
        Literal["symbols", "ids"], Option(help="Use gene symbols or Ensembl IDs (10x).")
    ] = "symbols",
    bin_um: Annotated[int | None, Option(help="Bins of Visium HD, µm. (default: 8)")] = None,
    alignment: Annotated[Path | None, Option(help="H&E alignment matrix (Xenium), csv.")] = None,
    array: Annotated[
        str | None, Option(help="Array of legacy ST: 1k or 2k. (default: detected)")
    ] = None,
    max_outside: Annotated[
        float, Option(min=0, max=1, help="Maximum fraction of spots outside the image.")
    ] = 0.05,
    patch_px: opt.PatchPx = 224,
    patch_um: opt.PatchUm[float] = 112,
    grid: Annotated[bool, Option("--grid", help="Grid over the tissue of --image.")] = False,
    pitch_um: Annotated[
        float | None, Option(min=0.001, max=1e5, help="Grid spacing, µm. (default: --patch-um)")
    ] = None,
    layout: opt.Layout = "square",
    min_tissue: opt.MinTissue = 0.1,
    overwrite: opt.Overwrite = False,
) -> None:
    """Cut patches of H&E slides around spots, or on a grid.

    The slides are those of SOURCE, or one slide of named files.
    """
    shared: dict[str, Any] = {"patch_px": patch_px, "patch_um": patch_um, "overwrite": overwrite}
    if array is not None and source is None:
        raise BadParameter("--array belongs to SOURCE")
    if grid:
        if image is None or name is None or source or spots or counts:
            raise BadParameter("--grid takes --image and --id, no SOURCE, --spots, --counts")
        shared |= {"um_per_px": um_per_px, "pitch_um": pitch_um, "min_tissue": min_tissue}
        shared["layout"] = layout
        _prepare_grid(image, out, name, shared)
        return
    if pitch_um is not None:
        raise BadParameter("--pitch-um belongs to --grid")
    from stflow_graph.platforms.source import SourceOptions, tables_source

    shared["max_outside"] = max_outside
    embeddings = out.parent / "embeddings"
    if source is not None and spots is None and counts is None:
        options = SourceOptions(name, image, um_per_px, gene_names, bin_um, alignment, array)
        _prepare_spots(source, out, {"options": options, "format": format, **shared})
        show_next("embed --source-dataroot", out, "--embed-dataroot", embeddings)
    elif source is None and image and counts and name and format is None:
        _prepare_spots(tables_source(name, image, spots, counts, um_per_px), out, shared)
        file = f"{name}.h5"
        show_next("embed", out / "patches" / file, "--out", embeddings / file)
    else:
        raise BadParameter("give SOURCE, or --image, --counts and --id of one slide")


def _prepare_spots(source: Path | SlideSource, out: Path, options: dict[str, Any]) -> None:
    """Cut patches around spots; the slides that worked are printed though others failed."""
    from stflow_graph.stages.prepare import prepare as run

    done: list[Prepared] = []

    def report(slide: Prepared) -> None:
        done.append(slide)
        add_result(slide)

    try:
        with progress() as bar:
            run(source, out, notice=show, progress=bar, report=report, **options)
    finally:
        if done:
            show(_slide_table(done, out))


def _slide_table(slides: Sequence[Prepared], out: Path) -> Group:
    """Return the kept and excluded spots of each slide."""
    rows = []
    for slide in slides:
        excluded = (slide.not_selected, slide.only_in_spots, slide.only_in_counts, slide.outside)
        numbers = map(str, (slide.n_spots, *excluded, slide.n_padded))
        files = state(slide.up_to_date).removeprefix("is ")
        rows.append([slide.slide, *numbers, f"{slide.pitch_um:.1f}", files])
    counts = ("spots", "unselected", "no\ncounts", "no\nplace", "outside", "padded", "pitch\nµm")
    return table(
        f"{out}/patches/<slide>.h5 and {out}/adata/<slide>.h5ad",
        ("slide", *counts, "files"),
        rows,
        left=(0, 8),
        note="excluded: unselected, no counts, no place, outside the image; padded: patches over "
        f"the edge.\nWhere the spots lie: {out}/overlays/<slide>.png",
    )


def _prepare_grid(image: Path, out: Path, name: str, options: dict[str, Any]) -> None:
    from stflow_graph.stages.tissue_grid import prepare_grid

    with progress() as bar:
        done = prepare_grid(image, out, name=name, progress=bar, **options)
    add_result(done)
    origin = "metadata" if options["um_per_px"] is None else "--um-per-px"
    embeddings = out.parent / "embeddings" / f"{name}.h5"
    patches = count(done.n_patches, "patch", "patches")
    show(
        f"{name}: {done.um_per_px:.4g} µm/px ({origin}), tissue on {done.tissue:.0%} of the slide",
        f"{name}: {patches} of a grid of {done.n_rows} x {done.n_columns}: "
        f"{done.patches} {state(done.up_to_date)}",
    )
    show_next("embed", done.patches, "--out", embeddings)
    show_next("sample RUN", embeddings, "--out", out.parent / "predictions")
