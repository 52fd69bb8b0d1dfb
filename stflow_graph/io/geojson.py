"""Spots with measurements as GeoJSON that QuPath imports: one detection a spot.

The format is what QuPath's own readers accept (``QuPathTypeAdapters`` and ``ROITypeAdapters`` of
qupath-core): a FeatureCollection whose features have ``properties.objectType``, ``name`` and
``measurements``, an object of numbers since version 0.4. Coordinates are pixels of the image at
full resolution, from its upper left corner. GeoJSON has no circles: a polygon with the member
``isEllipse`` becomes the ellipse in its bounding box; other software shows that box.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

Shape = Literal["circle", "square", "point"]
SHAPES: tuple[Shape, ...] = ("circle", "square", "point")
BEGIN = '{"type":"FeatureCollection","features":[\n'
END = "\n]}\n"
_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2  # closed, as rings must be
_CENTRE = np.zeros((1, 2))


class FeatureWriter:
    """Makes the features of spots, some spots at a time.

    Args:
        genes: G names of the measurements.
        shape: of a spot.
        size: diameter of a circle or edge of a square, px.
    """

    def __init__(self, genes: Sequence[str], shape: Shape, size: float) -> None:
        names = (json.dumps(gene).replace("%", "%%") for gene in genes)
        self._measurements = ",".join(f"{name}:%.6g" for name in names)
        self._corners = size * (_CENTRE if shape == "point" else _CORNERS)
        self._geometry = _geometry(shape)

    def features(
        self, barcodes: Sequence[str], coords: np.ndarray, values: np.ndarray
    ) -> Iterator[str]:
        """Yield the feature of each spot.

        Args:
            barcodes: n names.
            coords: ``[n, 2]`` centres, level-0 px.
            values: ``[n, G]`` finite.
        """
        corners = (coords[:, None] + self._corners).reshape(len(coords), -1)  # [n, 2 corners]
        for barcode, place, row in zip(barcodes, corners.tolist(), values.tolist(), strict=True):
            yield (
                f'{{"type":"Feature","geometry":{self._geometry % tuple(place)},'
                f'"properties":{{"objectType":"detection","name":{json.dumps(barcode)},'
                f'"measurements":{{{self._measurements % tuple(row)}}}}}}}'
            )


def _geometry(shape: Shape) -> str:
    """Return the text of a geometry with two placeholders a corner."""
    place = "[%.2f,%.2f]"  # as many digits as QuPath writes
    if shape == "point":
        return '{"type":"Point","coordinates":' + place + "}"
    ring = ",".join([place] * len(_CORNERS))
    ellipse = ',"isEllipse":true' if shape == "circle" else ""
    return '{"type":"Polygon","coordinates":[[' + ring + "]]" + ellipse + "}"
