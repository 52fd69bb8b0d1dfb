"""Embedding the patches of a slide straight from its image; none touches the disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from stflow_graph.encoders import Encoder
from stflow_graph.images.overlay import Overview, draw_overlay
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.atomic import write_bytes
from stflow_graph.preparation.cut_patches import Progress
from stflow_graph.preparation.embedding import Embedded, embed_patches
from stflow_graph.preparation.engine import EmbedSettings, Engine
from stflow_graph.preparation.patch_sources import ImagePatches
from stflow_graph.preparation.places import Places, warn_of_places
from stflow_graph.preparation.slide_places import GridOptions, SlideImage


@dataclasses.dataclass(frozen=True)
class PatchOptions:
    """Which patches of a slide are embedded.

    Attributes:
        grid: how spots are laid where the slide has none.
        um: edge of the area that a patch shows, µm.
        px: edge of a patch as the encoder gets it, px.
    """

    grid: GridOptions
    um: float = 112.0
    px: int = 224


def embed_image(
    slide: SlideImage,
    image: ImageReader,
    places: Places,
    target: Path,
    encoder: Encoder,
    settings: EmbedSettings,
    *,
    patch_px: int,
    image_sha256: str,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
    check: Callable[[], None] = lambda: None,
) -> Embedded:
    """Embed the patches around a slide's spots; arguments as of ``embedding.embed_patches``.

    Args:
        slide: the slide.
        image: its image, open.
        places: its spots.
        target: the embedding file.
        encoder: the patch encoder.
        settings: batch size, device, precision, workers, engine.
        patch_px: edge of a patch as the encoder gets it, px.
        image_sha256: of the image's bytes.
        overwrite: replace an existing target.
        progress: called with (slide, spots done, spots in all).
        engine: computes the embeddings; None makes one of the encoder.
        check: called when all patches are read.

    Raises:
        BadInput: the target holds other embeddings.
        OutOfMemory: a worker died.
    """
    here = None if settings.workers else image
    source = ImagePatches(slide.name, slide.image, places, patch_px, image_sha256, here)
    return embed_patches(
        source,
        target,
        encoder,
        settings,
        overwrite=overwrite,
        progress=progress,
        engine=engine,
        check=check,
    )


def write_overlay(slide: SlideImage, image: ImageReader, places: Places, file: Path) -> None:
    """Write a picture of where a slide's spots lie, and warn where they cannot be right."""
    overview = Overview.of(image)
    if slide.read_spots is not None:
        warn_of_places(overview, places.coords, places.edge, slide.image)
    drawn = draw_overlay(overview, places.coords, places.um_per_px, name=slide.name)
    write_bytes(file, drawn)
