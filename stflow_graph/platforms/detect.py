"""Recognising by the files in a folder which platform wrote it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.atomic import check_name, listed
from stflow_graph.platforms.array_scale import LEGACY_ARRAYS
from stflow_graph.platforms.hest import hest_slides
from stflow_graph.platforms.kit import MANIFEST, kit_slides
from stflow_graph.platforms.legacy_st import legacy_st_slides
from stflow_graph.platforms.source import NO_OPTIONS, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.spaceranger import visium_hd_slides, visium_slides
from stflow_graph.platforms.spatialdata import spatialdata_slides
from stflow_graph.platforms.stimage import stimage_slides
from stflow_graph.platforms.xenium import xenium_slides


class UnknownSource(BadInput):
    """A folder of no known kind."""


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of source.

    Attributes:
        name: its value of ``--format``.
        evidence: the files that identify it, for people.
        slides: returns the slides of a folder by name, none where it is of another kind.
        options: the options of ``SourceOptions`` that apply to it, besides ``name``.
    """

    name: str
    evidence: str
    slides: Callable[[Path, SourceOptions], Sources]
    options: frozenset[str]


_IMAGE = frozenset({"image", "um_per_px"})
# the most specific evidence comes first: an HD folder may also hold a Visium-like one
FORMATS = (
    Format("kit", MANIFEST, kit_slides, frozenset()),
    Format(
        "visium-hd",
        "binned_outputs/square_008um/",
        visium_hd_slides,
        _IMAGE | {"gene_names", "bin_um"},
    ),
    Format(
        "xenium",
        "cells.parquet + cell_feature_matrix.h5",
        xenium_slides,
        _IMAGE | {"gene_names", "alignment"},
    ),
    Format(
        "visium",
        "filtered_feature_bc_matrix.h5 + spatial/",
        visium_slides,
        _IMAGE | {"gene_names"},
    ),
    Format("hest", "st/<id>.h5ad + wsis/ or patches/", hest_slides, _IMAGE),
    Format("stimage", "<id>_coord.csv + <id>_count.csv", stimage_slides, _IMAGE | {"array"}),
    Format(
        "legacy-st",
        "<id>_selection.tsv + <id>.tsv.gz",
        legacy_st_slides,
        _IMAGE | {"array"},
    ),
    Format(
        "spatialdata",
        "a SpatialData .zarr: tables/ + shapes/",
        spatialdata_slides,
        frozenset({"um_per_px", "bin_um"}),
    ),
)


def evidence_of(kinds: Sequence[Format] = FORMATS) -> str:
    """Return the kinds with the files that identify each, for messages."""
    return "; ".join(f"{kind.name} ({kind.evidence})" for kind in kinds)


def find_slides(
    source: str | Path, options: SourceOptions = NO_OPTIONS, format: str | None = None
) -> list[SlideSource]:
    """Return the slides of a folder of any platform.

    Args:
        source: the folder.
        options: options of the user for it.
        format: a name of ``FORMATS``, to read it as that; None recognises it by the files.

    Raises:
        BadInput: no known kind (one line lists the evidence of each), no slide of the name in the
            options, several slides of one image, or the format's reader refuses it.
        BadConfig: an unknown format, or an option that does not apply to it.
    """
    folder = Path(source)
    kind, slides = _recognised(folder, options, format)
    for option in ("image", "um_per_px", "gene_names", "bin_um", "alignment", "array"):
        if option not in kind.options and getattr(options, option) != getattr(NO_OPTIONS, option):
            raise BadConfig(f"--{option.replace('_', '-')}: does not apply to {kind.name}")
    if options.array not in (None, *LEGACY_ARRAYS):
        raise BadConfig(f"--array {options.array!r}: expected {' or '.join(LEGACY_ARRAYS)}")
    names = [name for name in slides if options.name in (None, name)]
    if not names:
        raise BadInput(folder, "id", options.name, f"a slide of this {kind.name} folder")
    if options.image is not None and len(names) > 1:
        found = unquoted(", ".join(names[:5]))
        raise BadInput(folder, "id", found, "one slide for one image", "choose it with --id")
    return [_with_options(slides[check_name(name, folder, "id")](), options) for name in names]


def _recognised(folder: Path, options: SourceOptions, name: str | None) -> tuple[Format, Sources]:
    kinds = [kind for kind in FORMATS if name in (None, kind.name)]
    if not kinds:
        raise BadConfig(f"format {name!r}: expected {', '.join(kind.name for kind in FORMATS)}")
    if not folder.is_dir():
        raise BadInput(folder, "source", unquoted("no such folder"), "a folder")
    for kind in kinds:
        slides = kind.slides(folder, options)
        if slides:
            return kind, slides
    if (folder / "adata").is_dir() and (folder / "patches").is_dir():
        fix = f"go on with stflow-graph embed --source-dataroot {shlex.quote(str(folder))}"
        raise BadInput(folder, "source", unquoted("a data set that is prepared"), "raw slides", fix)
    raise UnknownSource(folder, "source", listed(folder), f"one of: {evidence_of(kinds)}")


def _with_options(slide: SlideSource, options: SourceOptions) -> SlideSource:
    if options.image is not None:
        slide = dataclasses.replace(slide, inputs={**slide.inputs, "image": options.image})
    if options.um_per_px is not None:
        slide = dataclasses.replace(slide, um_per_px=options.um_per_px)
    return slide
