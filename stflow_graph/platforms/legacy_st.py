"""Legacy Spatial Transcriptomics: ``<name>_selection.tsv`` and the counts ``<name>.tsv.gz``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.platforms.array_scale import um_per_px_of_array
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions
from stflow_graph.platforms.tables import read_counts, read_spots

_SELECTION = "_selection.tsv"
_COUNTS = (".tsv.gz", ".tsv", "_stdata.tsv.gz", "_stdata.tsv")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_PITCH_UM = 200.0


def is_legacy_st(folder: Path) -> bool:
    """Say whether a folder has a selection of spots."""
    return bool(_selections(folder))


def legacy_st_sources(folder: Path, options: SourceOptions) -> list[SlideSource]:
    """Return the sources of all slides, or of the one that ``options.name`` names.

    Raises:
        BadInput: a slide without counts.
    """
    return [
        _source(folder, name, file, options)
        for name, file in _selections(folder).items()
        if options.name in (None, name)
    ]


def _selections(folder: Path) -> dict[str, Path]:
    files = [*folder.glob(f"*{_SELECTION}"), *folder.glob(f"*{_SELECTION}.gz")]
    return {path.name.split(_SELECTION)[0]: path for path in sorted(files)}


def _source(folder: Path, name: str, spots: Path, options: SourceOptions) -> SlideSource:
    counts, images = (
        [folder / f"{name}{ending}" for ending in endings if (folder / f"{name}{ending}").is_file()]
        for endings in (_COUNTS, _IMAGES)
    )
    if not counts:
        expected = " or ".join(f"{name}{ending}" for ending in _COUNTS)
        raise BadInput(folder, f"counts of {name}", unquoted("no file"), expected)
    inputs = {"counts": counts[0], "spots": spots}
    if options.image is not None or images:
        inputs["image"] = options.image or images[0]
    return SlideSource(
        name,
        inputs,
        partial(_read, inputs),
        platform="legacy ST",
        unit="spots under tissue",
        um_per_px=options.um_per_px,
    )


def _read(inputs: Mapping[str, Path]) -> SlideData:
    spots = read_spots(inputs["spots"])
    scale = um_per_px_of_array(spots, (_PITCH_UM, _PITCH_UM))
    return SlideData(spots, read_counts(inputs["counts"]), scale)
