"""The embed stage: every patch file of a HEST-bench root, or a slide's image, to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stflow_graph.data.splits import embedding_path, find_datasets
from stflow_graph.encoders import Encoder
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.images.overlay import overlay_path
from stflow_graph.io.atomic import check_name
from stflow_graph.io.outputs import check_output_file, check_output_folder
from stflow_graph.io.versions import unchanged
from stflow_graph.parallel.share import Share
from stflow_graph.preparation.cut_patches import Progress
from stflow_graph.preparation.embedding import Embedded, embed_files, embed_patches
from stflow_graph.preparation.engine import DEFAULT_SETTINGS, EmbedSettings
from stflow_graph.preparation.image_embedding import PatchOptions, image_patches, write_overlay
from stflow_graph.preparation.slide_places import SlideImage


def embed(
    source_dataroot: str | Path,
    embed_dataroot: str | Path,
    encoder: Encoder,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    datasets: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Embedded], None] | None = None,
    share: Share | None = None,
) -> list[Embedded]:
    """Embed every patch file of every data set, as ``<root>/<data set>/<encoder>/fp32/<slide>.h5``.

    Args:
        source_dataroot: a HEST-bench root or one data set folder.
        embed_dataroot: root of the embeddings.
        encoder: the patch encoder.
        settings: batch size, device, precision, engine.
        datasets: names of data sets; none means all.
        overwrite: replace existing embeddings.
        progress: called with (slide, spots done, spots in all).
        report: called after every slide.
        share: of a part of an array's jobs, or of a rank; None: all slides.

    Raises:
        BadInput: no patches there, or the only slide cannot be used.
        SomeFailed: some slides failed; the others are written.
    """
    check_output_folder(embed_dataroot)
    jobs = []
    for dataset in find_datasets(source_dataroot, datasets):
        for file in sorted((dataset.path / "patches").glob("*.h5")):
            slide = check_name(file.stem, file)
            jobs.append((file, embedding_path(embed_dataroot, dataset.name, encoder.name, slide)))
    if not jobs:
        raise BadInput(source_dataroot, "patches", unquoted("no .h5 file"), "patches/<slide>.h5")
    return embed_files(
        jobs, encoder, settings, overwrite=overwrite, progress=progress, report=report, share=share
    )


def embed_from_image(
    slide: SlideImage,
    target: str | Path,
    encoder: Encoder,
    patches: PatchOptions,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedded:
    """Embed a slide from its image; ``overlays/<slide>.png`` beside shows where its spots lie.

    Args:
        slide: see ``preparation.slide_places.slides_of``.
        target: the embedding file.
        encoder: the patch encoder.
        patches: their size, and where they are.
        settings: batch size, device, precision, engine.
        overwrite: replace existing embeddings.
        progress: called with (slide, spots done, spots in all).

    Raises:
        BadInput: the image cannot be used: no scale, no tissue, spots outside it; or the target
            holds other embeddings.
    """
    check_output_file(target)
    inputs = slide.inputs.values()
    with unchanged(*inputs) as versions, slide.open() as image:
        hashes = slide.hashes()
        places = slide.places(image, patches.um, patches.grid)
        write_overlay(slide, image, places, overlay_path(Path(target).parent, slide.name))
        return embed_patches(
            image_patches(slide, image, places, patches.px, hashes, settings),
            target,
            encoder,
            settings,
            overwrite=overwrite,
            progress=progress,
            check=versions.check,
        )
