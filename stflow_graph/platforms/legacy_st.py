"""Legacy Spatial Transcriptomics: ``<name>_selection.tsv`` and the counts ``<name>.tsv.gz``.

They lie beside each other, or as her2st is published, in ``ST-spotfiles/``, ``ST-cnts/`` and
``ST-imgs/<patient>/<name>/``, in the folder or its ``data/``.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import required_file
from stflow_graph.platforms.array_scale import LEGACY_ARRAYS, legacy_array, um_per_px_of_array
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import check_orientation, read_counts, read_spots

_SELECTION = "_selection.tsv"
_COUNTS = (".tsv.gz", ".tsv", "_stdata.tsv.gz", "_stdata.tsv")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_HER2ST = ("ST-spotfiles", "ST-cnts", "ST-imgs")


def legacy_st_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slides that have a selection of spots."""
    roots = (folder, folder / "data")
    root = next((r for r in roots if (r / _HER2ST[0]).is_dir()), None)
    spots, counts, images = (folder,) * 3 if root is None else (root / name for name in _HER2ST)
    files = [*spots.glob(f"*{_SELECTION}"), *spots.glob(f"*{_SELECTION}.gz")]
    names = {path.name.split(_SELECTION)[0]: path for path in sorted(files)}
    return {
        name: partial(_source, name, path, counts, images, options) for name, path in names.items()
    }


def _source(
    name: str, spots: Path, counts: Path, images: Path, options: SourceOptions
) -> SlideSource:
    names = [name + ending for ending in _COUNTS]
    inputs = {"counts": required_file(counts, f"counts of {name}", names), "spots": spots}
    beside = [images / f"{name}{ending}" for ending in _IMAGES]
    inside = [
        p for p in sorted(images.glob(f"*/{glob.escape(name)}/*")) if p.suffix.lower() in _IMAGES
    ]
    if image := next((path for path in (*beside, *inside) if path.is_file()), None):
        inputs["image"] = image
    return SlideSource(
        name,
        inputs,
        partial(_read, inputs, options),
        platform=_platform(spots, options.array),
        unit="spots under tissue",
        settings={} if options.array is None else {"array": options.array},
    )


def _platform(spots: Path, array: str | None) -> str:
    try:
        kind = array or _array(spots)
    except BadInput:  # the slide's own error, when it is read
        return "legacy ST"
    return f"legacy ST ({kind} array)"


def _array(spots: Path) -> str:
    places = read_spots(spots).array
    assert places is not None, "a selection names spots by their places"
    return legacy_array(places, spots)


def _read(inputs: Mapping[str, Path], options: SourceOptions) -> SlideData:
    spots, counts = read_spots(inputs["spots"]), read_counts(inputs["counts"])
    check_orientation(spots, counts, inputs["counts"])
    try:
        step = LEGACY_ARRAYS[options.array or _array(inputs["spots"])]
    except BadInput:
        if options.um_per_px is None:
            raise
        return SlideData(spots, counts, None)
    return SlideData(spots, counts, um_per_px_of_array(spots, (step, step)))
