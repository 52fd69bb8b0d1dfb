"""STimage-1K4M: a count table, a coordinate table and a .png for every slide.

The tables lie beside each other, or as published in ``gene_exp/``, ``coord/`` and ``image/``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import required_file
from stflow_graph.io.columns import numbers, read_columns
from stflow_graph.platforms.array_scale import (
    LEGACY_ARRAYS,
    legacy_array,
    um_per_px_of_array,
    um_per_px_of_pitch,
)
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import SpotTable, check_orientation, read_counts, read_spots

_COORDS, _COUNTS = "_coord.csv", "_count.csv"
# the ratio of a spot's radius to the pitch identifies the platform: pitch and diameter (twice r),
# µm. Visium's diameter is Space Ranger's spot_diameter_fullres. The step of a legacy array depends
# on its kind, where the names of the spots are their places on it.
_PLATFORMS = {"legacy ST": (200.0, 100.0), "Visium": (100.0, 65.0)}
_CLOSE = 0.12
_ARRAY_PLACE = re.compile(r"(?:^|_)(\d+)x(\d+)$")


def stimage_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slides that have a coordinate table."""
    inner = folder / "coord"
    tables = sorted((inner if inner.is_dir() else folder).glob(f"*{_COORDS}"))
    names = {table.name.removesuffix(_COORDS): table for table in tables}
    return {name: partial(_source, folder, name, table, options) for name, table in names.items()}


def _source(folder: Path, name: str, coords: Path, options: SourceOptions) -> SlideSource:
    inputs = {"spots": coords}
    for role, part, file in (
        ("counts", "gene_exp", f"{name}{_COUNTS}"),
        ("image", "image", f"{name}.png"),
    ):
        if role != "image" or options.image is None:
            inputs[role] = required_file(folder, f"{role} of {name}", [f"{part}/{file}", file])
    read = partial(_read, inputs, options)
    settings = {} if options.array is None else {"array": options.array}
    return SlideSource(name, inputs, read, platform="STimage-1K4M", settings=settings)


def _read(inputs: Mapping[str, Path], options: SourceOptions) -> SlideData:
    spots = read_spots(inputs["spots"])
    places = [_ARRAY_PLACE.search(barcode) for barcode in spots.barcodes]
    if all(places):
        array = np.array([match.groups() for match in places if match], dtype=np.int64)
        spots = SpotTable(spots.barcodes, spots.coords, spots.selected, array)
    known = options.um_per_px is not None
    scale = None if known else _um_per_px(inputs["spots"], spots, options.array)
    # R's tables may name a gene twice
    expression = read_counts(inputs["counts"], number_duplicates=True)
    check_orientation(spots, expression, inputs["counts"])
    return SlideData(spots, expression, scale)


def _um_per_px(path: Path, spots: SpotTable, array: str | None) -> float:
    """Return the scale at which the spots are as wide and as far apart as on one platform."""
    platforms = dict(_PLATFORMS)
    if spots.array is not None:
        kind = array or legacy_array(spots.array, path)
        platforms = {"legacy ST": (LEGACY_ARRAYS[kind], _PLATFORMS["legacy ST"][1])}
    radius = float(np.median(numbers(read_columns(path, ["r"])["r"], path, "r")))
    for pitch_um, diameter_um in platforms.values():
        measured = um_per_px_of_array(spots, (pitch_um, pitch_um))
        measured = measured or um_per_px_of_pitch(spots.coords, pitch_um)
        if measured and radius > 0 and abs(2 * radius * measured / diameter_um - 1) < _CLOSE:
            return measured
    found = unquoted(f"a radius of {radius:.4g} px, unlike {' or '.join(platforms)} spots")
    fix = "give --um-per-px, the micrometres per pixel of the image"
    raise BadInput(path, "r", found, "a radius that fits the spots' distances", fix)
