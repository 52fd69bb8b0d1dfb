"""A kit: a folder of slides that its manifest ``dataset.csv`` lists."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.columns import as_number, check_columns, read_text_columns
from stflow_graph.io.hdf5 import check_unique
from stflow_graph.platforms.source import SlideSource, SourceOptions, Sources, tables_source

MANIFEST = "dataset.csv"


def is_kit(folder: Path) -> bool:
    """Return whether a folder has a manifest."""
    return (folder / MANIFEST).is_file()


def kit_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slides of the manifest."""
    if not is_kit(folder):
        return {}
    return {
        slide.name: partial(dataclasses.replace, slide)
        for slide in read_manifest(folder / MANIFEST)
    }


def read_manifest(path: str | Path) -> list[SlideSource]:
    """Read a kit's manifest: columns ``id, image, counts, spots, um_per_px`` and maybe ``patient``.

    Paths are relative to the manifest's folder. Other columns are ignored, and a row may stop
    before its last cells. ``spots`` may be empty where ``counts`` is an .h5ad.

    Raises:
        BadInput: columns missing, no slides, an id twice or unsafe as a file name, a path that
            leaves the folder, µm/px not a positive number, patients of some slides only.
    """
    path = Path(path)
    table = read_text_columns(path)
    check_columns(table, ("id", "image", "counts", "spots", "um_per_px"), path)
    rows = zip(*table.values(), strict=True)
    slides = [_kit_slide(path, dict(zip(table, row, strict=True))) for row in rows]
    if not slides:
        raise BadInput(path, "rows", unquoted("0 slides"), "at least one")
    # outputs are files named after slides, and some file systems ignore case
    check_unique([slide.name.casefold() for slide in slides], path, "id")
    unknown = [slide.name for slide in slides if not slide.patient]
    if 0 < len(unknown) < len(slides):
        found = unquoted(f"none for {unknown[:3]}")
        raise BadInput(path, "patient", found, "a patient for every slide or for none")
    return slides


def _kit_slide(path: Path, row: dict[str, str]) -> SlideSource:
    name = check_name(row["id"], path, "id")
    um_per_px = as_number(row["um_per_px"])
    if um_per_px is None or not 0 < um_per_px < np.inf:
        raise BadInput(path, f"um_per_px of {name}", row["um_per_px"], "a positive number")
    spots = row["spots"]
    if not spots and not row["counts"].endswith(".h5ad"):
        raise BadInput(path, f"spots of {name}", spots, "a spot table, as counts is no .h5ad")
    return tables_source(
        name,
        _inside(path, name, "image", row["image"]),
        _inside(path, name, "spots", spots) if spots else None,
        _inside(path, name, "counts", row["counts"]),
        um_per_px,
        row.get("patient", ""),
    )


def _inside(manifest: Path, name: str, column: str, text: str) -> Path:
    folder = manifest.parent
    target = folder / text
    field = f"{column} of {name}"
    try:
        inside = target.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # NUL bytes, too long, a loop of links
        inside = False
    if not text or not inside:
        raise BadInput(manifest, field, text, "a path inside the kit's folder")
    return target
