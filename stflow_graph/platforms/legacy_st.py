"""Legacy Spatial Transcriptomics: ``<name>_selection.tsv`` and the counts ``<name>.tsv.gz``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.io.atomic import required_file
from stflow_graph.platforms.array_scale import um_per_px_of_array
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import read_counts, read_spots

_SELECTION = "_selection.tsv"
_COUNTS = (".tsv.gz", ".tsv", "_stdata.tsv.gz", "_stdata.tsv")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_PITCH_UM = 200.0


def legacy_st_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slides that have a selection of spots."""
    files = [*folder.glob(f"*{_SELECTION}"), *folder.glob(f"*{_SELECTION}.gz")]
    names = {path.name.split(_SELECTION)[0]: path for path in sorted(files)}
    return {name: partial(_source, folder, name, spots) for name, spots in names.items()}


def _source(folder: Path, name: str, spots: Path) -> SlideSource:
    counts = required_file(folder, f"counts of {name}", [name + ending for ending in _COUNTS])
    inputs = {"counts": counts, "spots": spots}
    images = [folder / f"{name}{ending}" for ending in _IMAGES]
    if image := next((path for path in images if path.is_file()), None):
        inputs["image"] = image
    return SlideSource(
        name, inputs, partial(_read, inputs), platform="legacy ST", unit="spots under tissue"
    )


def _read(inputs: Mapping[str, Path]) -> SlideData:
    spots = read_spots(inputs["spots"])
    scale = um_per_px_of_array(spots, (_PITCH_UM, _PITCH_UM))
    return SlideData(spots, read_counts(inputs["counts"]), scale)
