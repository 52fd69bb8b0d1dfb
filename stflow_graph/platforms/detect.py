"""Telling by the files in a folder which platform wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.atomic import check_name, listed
from stflow_graph.platforms.hest import hest_sources, is_hest
from stflow_graph.platforms.kit import MANIFEST, is_kit, kit_sources
from stflow_graph.platforms.legacy_st import is_legacy_st, legacy_st_sources
from stflow_graph.platforms.source import NO_OPTIONS, SlideSource, SourceOptions
from stflow_graph.platforms.spaceranger import (
    is_visium,
    is_visium_hd,
    visium_hd_source,
    visium_source,
)
from stflow_graph.platforms.spatialdata import is_spatialdata, spatialdata_source
from stflow_graph.platforms.stimage import is_stimage, stimage_sources
from stflow_graph.platforms.xenium import is_xenium, xenium_source


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of source.

    Attributes:
        name: what ``--format`` calls it.
        evidence: the files that tell it, for people.
        recognises: says whether a folder is one.
        sources: returns its slides.
        options: the options of ``SourceOptions`` that apply to it, besides ``name``.
    """

    name: str
    evidence: str
    recognises: Callable[[Path], bool]
    sources: Callable[[Path, SourceOptions], list[SlideSource]]
    options: frozenset[str]


def _one(read: Callable[[Path, SourceOptions], SlideSource]) -> Callable[..., list[SlideSource]]:
    return lambda folder, options: [read(folder, options)]


_IMAGE = frozenset({"image", "um_per_px"})
# what has the most telling evidence comes first: an HD folder may also hold a Visium-like one
FORMATS = (
    Format("kit", MANIFEST, is_kit, kit_sources, frozenset()),
    Format(
        "visium-hd",
        "binned_outputs/square_008um/",
        is_visium_hd,
        _one(visium_hd_source),
        _IMAGE | {"gene_names", "bin_um"},
    ),
    Format(
        "xenium",
        "cells.parquet + cell_feature_matrix.h5",
        is_xenium,
        _one(xenium_source),
        _IMAGE | {"gene_names", "alignment"},
    ),
    Format(
        "visium",
        "filtered_feature_bc_matrix.h5 + spatial/",
        is_visium,
        _one(visium_source),
        _IMAGE | {"gene_names"},
    ),
    Format("hest", "st/<id>.h5ad + wsis/ or patches/", is_hest, hest_sources, _IMAGE),
    Format(
        "stimage",
        "<id>_coord.csv + <id>_count.csv",
        is_stimage,
        stimage_sources,
        _IMAGE,
    ),
    Format(
        "legacy-st",
        "<id>_selection.tsv + <id>.tsv.gz",
        is_legacy_st,
        legacy_st_sources,
        _IMAGE,
    ),
    Format(
        "spatialdata",
        "a SpatialData .zarr: tables/ + shapes/",
        is_spatialdata,
        _one(spatialdata_source),
        frozenset({"um_per_px", "bin_um"}),
    ),
)


def find_slides(
    source: str | Path, options: SourceOptions = NO_OPTIONS, format: str | None = None
) -> list[SlideSource]:
    """Return the slides of a folder, of whatever platform it is.

    Args:
        source: the folder.
        options: what the user says of it.
        format: a name of ``FORMATS``, to read it as that; None tells by the files.

    Raises:
        BadInput: nothing that is known (one line says what is looked for), no slide of the name
            asked for, several slides of one image, or the format's reader refuses it.
        BadConfig: an unknown format, or an option that does not apply to it.
    """
    folder = Path(source)
    found = _format(folder, format)
    _check_options(found, options)
    slides = found.sources(folder, options)
    if not slides:
        named = f"a slide of this {found.name} folder"
        expected = found.evidence if options.name is None else named
        raise BadInput(folder, "id", options.name, expected)
    if options.image is not None and len(slides) > 1:
        names = unquoted(", ".join(slide.name for slide in slides[:5]))
        raise BadInput(folder, "id", names, "one slide for one image", "choose it with --id")
    for slide in slides:
        check_name(slide.name, folder, "id")
    return slides


def _format(folder: Path, name: str | None) -> Format:
    if name is not None:
        named = {known.name: known for known in FORMATS}
        if name not in named:
            raise BadConfig(f"format {name!r}: expected {', '.join(named)}")
        return named[name]
    if not folder.is_dir():
        raise BadInput(folder, "source", unquoted("no such folder"), "a folder")
    for known in FORMATS:
        if known.recognises(folder):
            return known
    if (folder / "adata").is_dir() and (folder / "patches").is_dir():
        fix = f"go on with stflow-graph embed --source-dataroot {folder}"
        raise BadInput(folder, "source", unquoted("a data set that is prepared"), "raw slides", fix)
    looked_for = "; ".join(f"{known.name} ({known.evidence})" for known in FORMATS)
    raise BadInput(folder, "source", listed(folder), f"one of: {looked_for}")


def _check_options(found: Format, options: SourceOptions) -> None:
    for name in ("image", "um_per_px", "gene_names", "bin_um", "alignment"):
        if name not in found.options and getattr(options, name) != getattr(NO_OPTIONS, name):
            raise BadConfig(f"--{name.replace('_', '-')}: does not apply to {found.name}")
