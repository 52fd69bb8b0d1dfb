"""Pictures of where a slide's spots lie on its image, to be looked at before any work."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple, Self

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stflow_graph.errors import count
from stflow_graph.images.reader import ImageReader
from stflow_graph.images.tissue_mask import tissue_mask
from stflow_graph.io.coords import array_pitch, length_text, scale_bar_um

_LONGEST_EDGE = 1400
_CAPTION = 30  # px of height
_USED, _UNUSED = (0, 90, 181), (220, 50, 32)  # blue and red, told apart also by the colour-blind
_RADIUS = 0.3  # of the pitch
_MIN_RADIUS, _MAX_RADIUS = 1.0, 12.0  # px
_THIN = 4.0  # px; smaller rings have thinner lines
_FADED = 0.35  # of the way to white, so that spots stand out
_MIN_WIDTH = 560  # px, of the caption
_MARGIN, _MIN_MARGIN = 0.03, 10  # around what is shown, of its longer edge and px of the overview


def overlay_path(folder: str | Path, slide: str) -> Path:
    """Return where the overlay of a slide lies in a data set's or a prediction's folder."""
    return Path(folder) / "overlays" / f"{slide}.png"


class Overview(NamedTuple):
    """A whole image made small.

    Attributes:
        pixels: ``[height, width, 3]`` uint8.
        shrinkage: pixels of level 0 per pixel of it.
    """

    pixels: np.ndarray
    shrinkage: float

    @classmethod
    def of(cls, image: ImageReader) -> Self:
        """Read the overview of an image, 1,400 pixels at its longer edge."""
        shrinkage = max(1.0, max(image.size) / _LONGEST_EDGE)
        return cls(image.read_overview(shrinkage), shrinkage)


def draw_overlay(
    image: ImageReader,
    overview: Overview,
    coords: np.ndarray,
    um_per_px: float,
    *,
    name: str,
    unused: np.ndarray | None = None,
) -> bytes:
    """Return a PNG of the image with a ring at every spot, a scale bar and a caption.

    It shows the tissue and the spots, and little of the glass around them.

    Args:
        image: the open image.
        overview: of the image, on which its tissue is looked for.
        coords: ``[N, 2]`` centres of the spots in use, level-0 px (x, y).
        um_per_px: micrometres per level-0 pixel.
        name: the slide's, for the caption.
        unused: ``[M, 2]`` centres of spots that are left out, drawn in another colour.
    """
    unused = np.empty((0, 2)) if unused is None else unused
    pitch = array_pitch(coords) if len(coords) > 1 else np.nan
    box = _box(overview, image.size, np.concatenate([coords, unused]))
    shrinkage = max(1.0, max(box[2] - box[0], box[3] - box[1]) / _LONGEST_EDGE)
    pixels = image.read_overview(shrinkage, box).astype(np.float32)
    faded = (pixels + _FADED * (255 - pixels)).astype(np.uint8)
    height, width = faded.shape[:2]
    picture = Image.new("RGB", (max(width, _MIN_WIDTH), height + _CAPTION), "white")
    picture.paste(Image.fromarray(faded), (0, 0))
    drawing = ImageDraw.Draw(picture)
    radius = _RADIUS * pitch / shrinkage if np.isfinite(pitch) else _MAX_RADIUS
    radius = min(max(radius, _MIN_RADIUS), _MAX_RADIUS)
    for points, colour in ((coords, _USED), (unused, _UNUSED)):
        for x, y in (points - box[:2]) / shrinkage:
            drawing.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                outline=colour,
                width=2 if radius > _THIN else 1,
            )
    bar_um = scale_bar_um(coords, um_per_px)
    if bar_um is not None:
        _draw_bar(drawing, (width, height), bar_um, bar_um / (um_per_px * shrinkage))
    text = f"{name}: {count(len(coords), 'spot')}, {um_per_px:.4g} \u00b5m/px"
    if np.isfinite(pitch):
        text += f", pitch {pitch * um_per_px:.4g} \u00b5m"
    if len(unused):
        text += f"; left out (red): {len(unused):,}"
    drawing.text((6, height + 7), text, fill="black", font=_font(16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _box(
    overview: Overview, size: tuple[int, int], points: np.ndarray
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the tissue and the points, with a margin, level-0 px.

    Points that lie beside the tissue are to be seen, and so is tissue beside them.
    """
    step = -(-max(overview.pixels.shape) // _LONGEST_EDGE)  # an overview for a grid may be large
    rows, columns = np.nonzero(tissue_mask(overview.pixels[::step, ::step]))
    tissue = step * overview.shrinkage * np.stack([columns, rows], axis=1)
    shown = np.concatenate([points, tissue]) if len(rows) else points
    if not len(shown):
        return (0, 0, *size)
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = max(_MARGIN * float((high - low).max()), _MIN_MARGIN * overview.shrinkage)
    left, top = (int(max(0, edge - margin)) for edge in low)
    right, bottom = (
        int(min(length, max(edge + margin, start + 1)))
        for edge, length, start in zip(high, size, (left, top), strict=True)
    )
    return left, top, right, bottom


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own has no Greek letters
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size
    )


def _draw_bar(
    drawing: ImageDraw.ImageDraw, size: tuple[int, int], bar_um: int, length: float
) -> None:
    """Draw a scale bar of a length in px with its label in the lower right corner."""
    right, bottom = size[0] - 12, size[1] - 12
    drawing.rectangle((right - length, bottom - 5, right, bottom), fill="black")
    text = length_text(bar_um)
    drawing.text((right, bottom - 8), text, fill="black", anchor="rs", font=_font(14))
