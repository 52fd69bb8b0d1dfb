"""Slides to predict: their image, and where on it the spots are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput
from stflow_graph.images.open import open_image
from stflow_graph.images.reader import ImageReader
from stflow_graph.images.scale import scale_of_slide
from stflow_graph.io.atomic import check_name, listed, sha256
from stflow_graph.platforms.detect import UnknownSource, evidence_of, find_slides
from stflow_graph.platforms.source import SlideSource, SourceOptions
from stflow_graph.platforms.tables import SpotTable, read_spots
from stflow_graph.preparation.cut_patches import check_scale
from stflow_graph.preparation.places import Layout, Places, grid_places, rows_inside

# of files in a folder of slides
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn"}
_IMAGE_SUFFIXES |= {".vms", ".vmu", ".bif", ".svslide", ".dcm", ".btf"}


@dataclasses.dataclass(frozen=True)
class GridOptions:
    """How spots are laid over the tissue of a slide that has none.

    Attributes:
        pitch_um: from one to the next, µm.
        layout: ``"hexagonal"`` or ``"square"``.
        min_tissue: share of a patch that must be tissue.
    """

    pitch_um: float
    layout: Layout = "hexagonal"
    min_tissue: float = 0.25


@dataclasses.dataclass(frozen=True)
class SlideImage:
    """A slide to predict, not read yet.

    Attributes:
        name: the slide's name.
        image: the file of its H&E image, or a folder that holds it.
        open: opens the image.
        read_spots: reads the spots and the scale in their files, None where a grid is laid.
        inputs: every file that is read, by role.
        hash_input: returns the SHA-256 of one.
        um_per_px: micrometres per pixel from the user.
        images_scale_first: whether the image's own scale is believed more than the spots'.
    """

    name: str
    image: Path
    open: Callable[[], contextlib.AbstractContextManager[ImageReader]]
    read_spots: Callable[[], tuple[SpotTable, float | None]] | None
    inputs: Mapping[str, Path]
    hash_input: Callable[[Path], str] = sha256
    um_per_px: float | None = None
    images_scale_first: bool = True

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file that is read, by role."""
        return {f"{role}_sha256": self.hash_input(file) for role, file in self.inputs.items()}

    def places(self, image: ImageReader, patch_um: float, grid: GridOptions) -> Places:
        """Return the slide's spots.

        Args:
            image: the open image.
            patch_um: edge of the area that a patch shows, µm.
            grid: how they are laid where the slide has none.

        Raises:
            BadInput: no scale or two, spots outside the image, or no tissue.
        """
        table, stored = (None, None) if self.read_spots is None else self.read_spots()
        scale = scale_of_slide(
            self.image,
            self.um_per_px,
            stored,
            image.um_per_px,
            own_first=self.images_scale_first,
        )
        um_per_px = check_scale(scale, patch_um, self.image)
        if table is None:
            options = dataclasses.asdict(grid)
            return grid_places(image, um_per_px, patch_um=patch_um, **options)
        n = len(table.barcodes)
        rows = np.arange(n) if table.selected is None else np.flatnonzero(table.selected)
        rows = rows[rows_inside(table.coords[rows], image.size, self.image)]
        barcodes = [table.barcodes[i] for i in rows]
        return Places(barcodes, table.coords[rows], patch_um / um_per_px, um_per_px)


def slides_of(
    source: str | Path, spots: str | Path | None = None, options: SourceOptions | None = None
) -> list[SlideImage]:
    """Return the slides of a path.

    Args:
        source: an image; a folder of any platform, see ``platforms.detect.find_slides``, or of
            images.
        spots: spot table of the only image.
        options: the user's options for it.

    Raises:
        BadInput: no such path, or a folder without slides.
    """
    path, options = Path(source), options or SourceOptions()
    if path.is_dir():
        try:
            slides = find_slides(path, options)
        except BadInput as error:
            images = _images(path)
            if not images and isinstance(error, UnknownSource):
                endings = ", ".join(sorted(_IMAGE_SUFFIXES))
                expected = f"images ({endings}), or one of: {evidence_of()}"
                raise BadInput(path, "slides", listed(path), expected) from None
            if not images:
                raise
            return [_of_image(image, None, options) for image in images]
        return [_of_source(slide) for slide in slides]
    return [_of_image(path, spots, options)]


def _images(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return [file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES]


def _of_image(image: Path, spots: str | Path | None, options: SourceOptions) -> SlideImage:
    return SlideImage(
        check_name(options.name or image.name.split(".")[0], image, "id"),
        image,
        lambda: open_image(image),
        None if spots is None else lambda: (read_spots(spots), None),
        {"image": image} if spots is None else {"image": image, "spots": Path(spots)},
        um_per_px=options.um_per_px,
    )


def _of_source(source: SlideSource) -> SlideImage:
    def spots() -> tuple[SpotTable, float | None]:
        data = source.read()
        return data.spots, data.um_per_px

    return SlideImage(
        check_name(source.name, source.image_file, "id"),
        source.image_file,
        source.image,
        spots,
        source.inputs,
        source.hash_input,
        source.um_per_px,
        images_scale_first=not source.platform,
    )
