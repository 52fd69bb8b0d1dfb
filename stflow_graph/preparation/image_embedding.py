"""The patches of a slide straight from its image, to be embedded; none touches the disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from stflow_graph.images.overlay import Overview, draw_overlay
from stflow_graph.images.reader import ImageReader
from stflow_graph.io.atomic import write_bytes
from stflow_graph.preparation.engine import EmbedSettings
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


def image_patches(
    slide: SlideImage,
    image: ImageReader,
    places: Places,
    patch_px: int,
    hashes: Mapping[str, str],
    settings: EmbedSettings,
) -> ImagePatches:
    """Return the patches around a slide's spots, for ``embedding.embed_patches``.

    Args:
        slide: the slide.
        image: its image, open.
        places: its spots.
        patch_px: edge of a patch as the encoder gets it, px.
        hashes: from ``SlideImage.hashes``.
        settings: whether other processes read.
    """
    digest = hashes.get("image_sha256") or hashes["counts_sha256"]
    here = None if settings.workers else image
    places = dataclasses.replace(places, overview=None)  # processes that read do without
    return ImagePatches(slide.name, slide.image, places, patch_px, digest, here)


def write_overlay(slide: SlideImage, image: ImageReader, places: Places, file: Path) -> None:
    """Write a picture of where a slide's spots lie, and warn where they cannot be right."""
    overview = places.overview or Overview.of(image)
    if slide.read_spots is not None:
        warn_of_places(overview, places.coords, places.edge, slide.image)
    drawn = draw_overlay(image, overview, places.coords, places.um_per_px, name=slide.name)
    write_bytes(file, drawn)
