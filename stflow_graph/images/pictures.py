"""Reading a slide's image reduced to a picture."""

from __future__ import annotations

from pathlib import Path

from stflow_graph.images.open import open_image
from stflow_graph.io.picture import Picture

LONGEST_EDGE = 2000


def read_picture(path: str | Path, longest_edge: int = LONGEST_EDGE) -> Picture:
    """Read an image and reduce it by a whole number, from the fitting level of a pyramid.

    Args:
        path: an image of any format of ``images.open``.
        longest_edge: maximum pixels of the result's longer side.

    Raises:
        BadInput: not such an image.
    """
    with open_image(path) as reader:
        factor = -(-max(reader.size) // longest_edge)
        return Picture(reader.read_overview(factor), factor, reader.size, str(path))
