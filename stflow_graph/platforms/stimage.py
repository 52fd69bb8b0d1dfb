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
from stflow_graph.io.columns import numbers, read_columns
from stflow_graph.platforms.array_scale import um_per_px_of_array, um_per_px_of_pitch
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions
from stflow_graph.platforms.tables import SpotTable, read_counts, read_spots

_COORDS, _COUNTS = "_coord.csv", "_count.csv"
# a spot's radius against the distance to the next tells the platform: µm apart, and the diameter
# that r is half of. Visium's is Space Ranger's spot_diameter_fullres
_PLATFORMS = {"legacy ST": (200.0, 100.0), "Visium": (100.0, 65.0)}
_CLOSE = 0.12
_ARRAY_PLACE = re.compile(r"(?:^|_)(\d+)x(\d+)$")


def is_stimage(folder: Path) -> bool:
    """Say whether a folder has coordinate and count tables of STimage-1K4M."""
    return bool(_coordinate_files(folder))


def stimage_sources(folder: Path, options: SourceOptions) -> list[SlideSource]:
    """Return the sources of all slides, or of the one that ``options.name`` names.

    Raises:
        BadInput: a slide without counts or image.
    """
    files = {file.name.removesuffix(_COORDS): file for file in _coordinate_files(folder)}
    return [
        _source(folder, name, file, options)
        for name, file in files.items()
        if options.name in (None, name)
    ]


def _coordinate_files(folder: Path) -> list[Path]:
    inner = folder / "coord"
    return sorted((inner if inner.is_dir() else folder).glob(f"*{_COORDS}"))


def _source(folder: Path, name: str, coords: Path, options: SourceOptions) -> SlideSource:
    inputs = {"spots": coords}
    for role, part, file in (
        ("counts", "gene_exp", f"{name}{_COUNTS}"),
        ("image", "image", f"{name}.png"),
    ):
        found = [path for path in (folder / part / file, folder / file) if path.is_file()]
        if role == "image" and options.image is not None:
            found = [options.image]
        if not found:
            expected = f"{file} or {part}/{file}"
            raise BadInput(folder, f"{role} of {name}", unquoted("no file"), expected)
        inputs[role] = found[0]
    return SlideSource(
        name,
        inputs,
        partial(_read, inputs, options.um_per_px is not None),
        platform="STimage-1K4M",
        um_per_px=options.um_per_px,
    )


def _read(inputs: Mapping[str, Path], scale_known: bool) -> SlideData:
    spots = read_spots(inputs["spots"])
    places = [_ARRAY_PLACE.search(barcode) for barcode in spots.barcodes]
    if all(places):
        array = np.array([match.groups() for match in places if match], dtype=np.int64)
        spots = SpotTable(spots.barcodes, spots.coords, spots.selected, array)
    scale = None if scale_known else _um_per_px(inputs["spots"], spots)
    # R's tables may name a gene twice
    expression = read_counts(inputs["counts"], number_duplicates=True)
    return SlideData(spots, expression, scale)


def _um_per_px(path: Path, spots: SpotTable) -> float:
    """Return the scale at which the spots are as wide and as far apart as on one platform."""
    radius = float(np.median(numbers(read_columns(path, ["r"])["r"], path, "r")))
    for pitch_um, diameter_um in _PLATFORMS.values():
        measured = um_per_px_of_array(spots, (pitch_um, pitch_um))
        measured = measured or um_per_px_of_pitch(spots.coords, pitch_um)
        if measured and radius > 0 and abs(2 * radius * measured / diameter_um - 1) < _CLOSE:
            return measured
    found = unquoted(f"a radius of {radius:.4g} px, unlike {' or '.join(_PLATFORMS)} spots")
    fix = "give --um-per-px, the micrometres per pixel of the image"
    raise BadInput(path, "r", found, "a radius that fits the spots' distances", fix)
