"""Pictures of domains: a slide's spots in the colours of their domains, and spots in the plane."""

from __future__ import annotations

import base64
import colorsys
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.evaluation.charts import MapFrame, category_png
from stflow_graph.evaluation.groups import MAX_DRAWN, groups_of_spots, most_frequent
from stflow_graph.io.prediction_file import PredictionFile, StoredPicture

# Okabe and Ito 2008, without black, which dark pages hide, and with grey: differ in any vision
_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#f0e442", "#cc79a7", "#8c8c8c"),
)
N_COLOURS = len(_COLOURS)
_LIGHTER = (0.0, -0.18, 0.18)  # of the colours after the first eight
_ON_TISSUE = 0.72  # width of a disc that leaves tissue to be seen
_PLANE_HEIGHT, _DISC = 0.75, 0.012  # of the width of a plot
_JPEG_QUALITY = 80


@dataclasses.dataclass(frozen=True)
class DomainMap:
    """A slide's map.

    Attributes:
        png: discs on a transparent background, base64.
        tissue: the slide's image under them, a JPEG as base64; "" without one.
        size: width and height, px.
        bar_um: length of the scale bar, µm, None without one.
        merged: whether neighbouring spots are drawn as one.
        damaged: whether the prediction has an image that cannot be read.
    """

    png: str
    tissue: str
    size: tuple[int, int]
    bar_um: int | None
    merged: bool
    damaged: bool


def palette(n: int) -> list[str]:
    """Return n colours: eight that differ in any colour vision, then shades of them, in turn."""
    colours = []
    for i in range(n):
        hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(_COLOURS[i % N_COLOURS]))
        light += _LIGHTER[i // N_COLOURS % len(_LIGHTER)]
        rgb = colorsys.hls_to_rgb(hue, min(max(light, 0.15), 0.9), saturation)
        colours.append(to_hex(rgb))
    return colours


def domain_map(file: PredictionFile, labels: np.ndarray, colours: Sequence[str]) -> DomainMap:
    """Draw the domains of a slide, on its image if the prediction carries one.

    Args:
        file: its prediction.
        labels: ``[N]`` from 0 on.
        colours: of the domains.
    """
    places, group = groups_of_spots(file.coords)
    scale = file.provenance.get("um_per_px")
    is_scale = isinstance(scale, int | float) and 0 < scale < np.inf
    frame = MapFrame.of(places, scale if is_scale else None)
    try:
        picture, damaged = file.picture(), False
    except BadInput:
        picture, damaged = None, True
    width = 0.94 if picture is None else _ON_TISSUE
    drawn = category_png(frame, most_frequent(labels, group), colours, width)
    return DomainMap(
        _base64(drawn),
        "" if picture is None else _base64(_tissue(picture, frame)),
        frame.size,
        frame.bar_um,
        len(file) > MAX_DRAWN,
        damaged,
    )


def plane_png(places: np.ndarray, labels: np.ndarray, colours: Sequence[str]) -> str:
    """Return spots in a plane without units as PNG, base64, drawn in an order of chance.

    Args:
        places: ``[n, 2]``, y upwards; stretched to the picture.
        labels: ``[n]`` from 0 on.
        colours: of the labels.
    """
    order = np.random.default_rng(0).permutation(len(places))
    low, extent = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
    x, y = ((places - low) / extent)[order].T
    spots = np.stack([x, _PLANE_HEIGHT * (1 - y)], axis=1)
    frame = MapFrame(spots, _DISC, (-_DISC, -_DISC, 1 + _DISC, _PLANE_HEIGHT + _DISC), None, 0.0)
    return _base64(category_png(frame, labels[order], colours, 1.0))


def _tissue(picture: StoredPicture, frame: MapFrame) -> bytes:
    """Return the part of the image that a map shows, white beyond the image."""
    box = [round(edge * picture.scale) for edge in frame.box]
    height, width = picture.pixels.shape[:2]
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], width), min(box[3], height)
    part = Image.new("RGB", (max(box[2] - box[0], 1), max(box[3] - box[1], 1)), "white")
    if left < right and top < bottom:
        inside = Image.fromarray(picture.pixels[top:bottom, left:right])
        part.paste(inside, (left - box[0], top - box[1]))
    buffer = io.BytesIO()
    part.resize(frame.size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
