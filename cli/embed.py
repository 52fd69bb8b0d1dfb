"""``stflow-graph embed``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from stflow_graph.errors import count
from stflow_graph.parallel.ranks import is_rank

from . import options as opt
from .display import add_result, progress, show, state
from .following import follow_embed
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.preparation.embedding import Embedded


def embed(
    patches: Annotated[list[Path] | None, Argument(help="Patch files (with --out).")] = None,
    source_dataroot: opt.SourceDataroot[Path | None] = None,
    embed_dataroot: opt.EmbedDataroot[Path | None] = None,
    out: Annotated[Path | None, Option(help="Output file or folder, for patch files.")] = None,
    datasets: opt.Datasets = None,
    image: Annotated[
        Path | None, Option(help="H&E image, instead of patches (with --out FILE.h5).")
    ] = None,
    spots: opt.Spots = None,
    um_per_px: opt.UmPerPx = None,
    patch_px: opt.PatchPx = 224,
    patch_um: opt.PatchUm[float] = 112,
    pitch_um: opt.PitchUm[float] = 100,
    layout: opt.Layout = "hexagonal",
    min_tissue: opt.MinTissue = 0.25,
    encoder: Annotated[
        str, Option(help="Name in `stflow-graph encoders` or timm, or module:factory.")
    ] = "efficientnet_lite0",
    weights: Annotated[Path | None, Option(help="File: safetensors or a state dict.")] = None,
    weights_root: opt.WeightsRoot = None,
    batch_size: opt.PatchBatch = 64,
    device: opt.Device[str] = "auto",
    precision: opt.Precision = "auto",
    engine: opt.Engine = "auto",
    workers: opt.Workers = 0,
    part: opt.PartOfSlides = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Embed patches, or those of an image, with a patch encoder."""
    roots = source_dataroot or embed_dataroot
    given = [way for way in (roots, patches, image) if way]
    complete = out is not None if patches else bool(source_dataroot and embed_dataroot)
    if image:
        complete = out is not None and out.suffix == ".h5"
    if len(given) != 1 or not complete:
        raise BadParameter(
            "give --source-dataroot with --embed-dataroot, or patch files with --out, or --image "
            "with --out FILE.h5"
        )
    if image and (part or is_rank()):
        raise BadParameter("--part and --nproc are of several slides, not of one --image")
    chosen = opt.share_of(part)
    _check_paths(
        [image, spots, weights, weights_root], source_dataroot, patches, embed_dataroot or out
    )
    from stflow_graph.encoders import create_encoder
    from stflow_graph.models.build import pick_device
    from stflow_graph.platforms.source import SourceOptions
    from stflow_graph.preparation.embedding import embed_files
    from stflow_graph.preparation.engine import EmbedSettings
    from stflow_graph.preparation.image_embedding import PatchOptions
    from stflow_graph.preparation.slide_places import GridOptions, slides_of
    from stflow_graph.stages.embed import embed as run
    from stflow_graph.stages.embed import embed_from_image

    network = create_encoder(encoder, weights, weights_root)
    settings = EmbedSettings(batch_size, str(pick_device(device)), precision, workers, engine)
    start = time.perf_counter()
    with progress() as report:
        if image and out:
            slide = slides_of(image, spots, SourceOptions(out.stem, um_per_px=um_per_px))[0]
            grid = GridOptions(pitch_um, layout, min_tissue)
            options = PatchOptions(grid, patch_um, patch_px)
            done = [
                embed_from_image(
                    slide, out, network, options, settings, overwrite=overwrite, progress=report
                )
            ]
            add_result(done[0])
        elif source_dataroot and embed_dataroot:
            done = run(
                source_dataroot,
                embed_dataroot,
                network,
                settings,
                datasets=datasets or [],
                overwrite=overwrite,
                progress=report,
                report=add_result,
                share=chosen,
            )
        else:
            folder = out is not None and (out.suffix != ".h5" or len(patches or []) > 1)
            jobs = [(p, out / f"{p.stem}.h5" if folder else out) for p in patches or [] if out]
            done = embed_files(
                jobs,
                network,
                settings,
                overwrite=overwrite,
                progress=report,
                report=add_result,
                share=chosen,
            )
    if not done and part:
        show(f"part {part} has no slides")
    _show(done, time.perf_counter() - start, f"{network.name} on {settings.device}")
    if source_dataroot and embed_dataroot:
        follow_embed(source_dataroot, embed_dataroot, network.name, datasets or [])


def _check_paths(
    files: list[Path | None], root: Path | None, patches: list[Path] | None, out: Path | None
) -> None:
    is_file = out is not None and out.suffix == ".h5"
    to_file, to_folder = (out, None) if is_file else (None, out)
    check_paths(*files, folder=to_folder, file=to_file, roots=[root], slides=patches or [])


def _show(done: Sequence[Embedded], seconds: float, encoder: str) -> None:
    for slide in done:
        blank = f", {slide.n_blank} blank" if slide.n_blank else ""
        outcome = f"{slide.path} {state(slide.up_to_date)}"
        show(f"{slide.slide}: {count(slide.n_spots, 'spot')}{blank}: {outcome}")
    if n := sum(slide.n_spots for slide in done if not slide.up_to_date):
        patches = count(n, "patch", "patches")
        show(f"{patches} in {seconds:.1f} s: {n / seconds:,.1f} patches/s, {encoder}")
