"""Cutting a patch around every spot of one slide, and writing its counts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.data.barcodes import match_barcodes
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.images.overlay import Overview, draw_overlay, overlay_path
from stflow_graph.images.reader import ImageReader
from stflow_graph.images.scale import scale_of_slide
from stflow_graph.io.atomic import write_bytes
from stflow_graph.io.coords import array_pitch
from stflow_graph.io.expression import FORMAT as EXPRESSION
from stflow_graph.io.expression import write_expression
from stflow_graph.io.hdf5 import open_h5
from stflow_graph.io.patches import PatchFile, open_patches
from stflow_graph.platforms.source import SlideData, SlideSource
from stflow_graph.preparation.cut_patches import (
    Progress,
    check_scale,
    cut_patches,
    patch_reader,
    patches_record,
    up_to_date_record,
)
from stflow_graph.preparation.places import MAX_OUTSIDE, rows_inside, warn_of_places
from stflow_graph.version import __version__

_KEY = "stflow_graph"  # the record of an .h5ad is uns[_KEY]["provenance"]
_HEST_UM_PER_PX = 0.5  # of HEST's patches that do not state it
_SAME_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A slide's tables, the rows of both that are of the same spots, and how many are not."""

    data: SlideData
    rows: np.ndarray
    expression_rows: np.ndarray
    left_out: dict[str, int]

    @property
    def barcodes(self) -> list[str]:
        return [self.data.spots.barcodes[i] for i in self.rows]

    @property
    def coords(self) -> np.ndarray:
        return self.data.spots.coords[self.rows]

    @property
    def unused(self) -> np.ndarray:
        """The centres of the table's spots that are left out."""
        return np.delete(self.data.spots.coords, self.rows, axis=0)

    def inside(self, size: Sequence[int], file: Path, max_outside: float) -> _Joined:
        """Return the spots that lie in an image; see ``places.rows_inside``."""
        rows = rows_inside(self.coords, size, file, max_outside, "--max-outside")
        left_out = self.left_out | {"outside": len(self.rows) - len(rows)}
        return _Joined(self.data, self.rows[rows], self.expression_rows[rows], left_out)


def cut_slide(
    source: SlideSource,
    patches: Path,
    adata: Path,
    request: dict[str, Any],
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    check: Callable[[], None] | None = None,
    max_outside: float = MAX_OUTSIDE,
) -> dict[str, Any]:
    """Write a slide's patch file and expression file, each with a record of how it was made.

    Beside them ``overlays/<slide>.png`` shows where the spots lie. A spot must be in both tables.
    Where the source has patches of the requested size, they are copied, and a spot must be among
    those, too.

    Args:
        source: the slide.
        patches: the patch file to write.
        adata: the expression file to write.
        request: ``slide``, ``patch_px``, ``patch_um`` and further entries of both records.
        progress: called with the slide's name, the patches written and all its patches.
        notice: called with one line on what was recognised, before patches are cut.
        check: called when all inputs are read; what it raises keeps both files from being written.
        max_outside: of the spots, the share that may lie outside the image and is left out.

    Returns:
        The record of the patch file.

    Raises:
        BadInput: an input is bad, or more spots than ``max_outside`` lie outside the image.
    """
    with contextlib.ExitStack() as stack:
        stored = _stored_patches(stack, source, request)
        # before the tables, which may be large: a bad image is refused at once
        image = stack.enter_context(source.image()) if stored is None else None
        data = source.read()
        kept = _join(data, source, stored)
        if image is not None:
            kept = kept.inside(image.size, source.spots_file, max_outside)
        coords, scale = kept.coords, _um_per_px(source, data, image)
        um_per_px = check_scale(scale, request["patch_um"], source.image_file)
        edge = request["patch_um"] / um_per_px  # level-0 px
        provenance = {**request, "um_per_px": um_per_px, "version": __version__}
        if source.platform:
            provenance["platform"] = source.platform
            n = len(data.spots.barcodes) - kept.left_out["not_selected"]
            recognised = f"{source.platform}, {n:,} {source.unit}, {um_per_px:.3f} µm/px"
            if notice is not None:
                notice(f"{source.name}: {recognised}")
        n_padded = 0
        if image is not None:
            overview = Overview.of(image)
            warn_of_places(overview, coords, edge, source.spots_file)
            read = patch_reader(image, coords, edge, request["patch_px"])
            padded = (coords < edge / 2) | (coords > np.array(image.size) - edge / 2)
            n_padded = int(padded.any(axis=1).sum())
        else:
            assert stored is not None
            read = _stored_reader(kept, stored, edge, source.spots_file)
        record = {
            **provenance,
            **kept.left_out,
            "n_spots": len(coords),
            "n_padded": n_padded,
            "pitch_um": array_pitch(coords) * um_per_px if len(coords) > 1 else np.nan,
        }
        cut_patches(patches, read, kept.barcodes, coords, edge, record, progress, check)
        if image is not None:
            drawn = draw_overlay(
                image, overview, coords, um_per_px, name=request["slide"], unused=kept.unused
            )
            write_bytes(overlay_path(patches.parents[1], request["slide"]), drawn)
    _write_adata(adata, kept, provenance)
    return record


def slide_record(patches: Path, adata: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the patch file's record if both files of a slide exist and fit the request.

    Raises:
        BadInput: a file exists and was made in another way.
    """
    files = ((patches, patches_record), (adata, _adata_record))
    records = [up_to_date_record(file, read, request) for file, read in files]
    return records[0] if None not in records else None


def _adata_record(path: Path) -> dict[str, Any]:
    with open_h5(path) as file:
        try:
            return dict(json.loads(file[f"uns/{_KEY}/provenance"][()]))
        except (KeyError, TypeError, ValueError):
            return {}


def _stored_patches(
    stack: contextlib.ExitStack, source: SlideSource, request: dict[str, Any]
) -> PatchFile | None:
    """Open the source's own patches if they have the requested size."""
    if "patches" not in source.inputs:
        return None
    stored = stack.enter_context(open_patches(source.inputs["patches"]))
    size = stored.images.shape[2]
    shown_um = size * _HEST_UM_PER_PX
    if stored.size_level0 is not None and stored.um_per_px is not None:
        shown_um = stored.size_level0 * stored.um_per_px
    if size == request["patch_px"] and abs(shown_um / request["patch_um"] - 1) < _SAME_SCALE:
        return stored
    if "image" not in source.inputs:
        found = unquoted(f"patches of {size} px that show {shown_um:.4g} µm, and no image to cut")
        expected = f"{request['patch_px']} px of {request['patch_um']:g} µm"
        fix = f"give --patch-px {size} --patch-um {shown_um:.4g}, or download the image"
        raise BadInput(source.inputs["patches"], "img", found, expected, fix)
    return None


def _join(data: SlideData, source: SlideSource, stored: PatchFile | None) -> _Joined:
    table, expression = data.spots, data.expression
    file, counts = source.spots_file, source.inputs["counts"]
    n = len(table.barcodes)
    chosen = np.arange(n) if table.selected is None else np.flatnonzero(table.selected)
    if not len(chosen):
        raise BadInput(file, "selected", unquoted(f"0 of {count(n, 'spot')}"), "at least one")
    if stored is not None:
        names = [table.barcodes[i] for i in chosen]
        chosen = chosen[match_barcodes(names, stored.barcodes, file, stored.path)[0]]
    names = [table.barcodes[i] for i in chosen]
    rows, expression_rows = match_barcodes(names, expression.barcodes, file, counts)
    left_out = {
        "not_selected": n - len(chosen),
        "only_in_spots": len(chosen) - len(rows),
        "only_in_counts": len(set(expression.barcodes) - set(table.barcodes)),
        "outside": 0,
    }
    return _Joined(data, chosen[rows], expression_rows, left_out)


def _um_per_px(source: SlideSource, data: SlideData, image: ImageReader | None) -> float | None:
    """Return the user's scale, or else that of a platform's array, or else the image's."""
    own = None if image is None else image.um_per_px
    # of tables made by hand the image's own metadata are more reliable
    own_first = not source.platform
    return scale_of_slide(
        source.image_file, source.um_per_px, data.um_per_px, own, own_first=own_first
    )


def _stored_reader(
    kept: _Joined, stored: PatchFile, edge: float, spots_file: Path
) -> Callable[[int, int], np.ndarray]:
    rows = match_barcodes(kept.barcodes, stored.barcodes, spots_file, stored.path)[1]
    # corners or centres of patches, but of the same spots
    shift = np.median(kept.coords - stored.coords[rows], axis=0)
    if min(np.abs(shift).max(), np.abs(shift - edge / 2).max()) > edge / 8:
        found = unquoted(f"{shift[0]:.0f}, {shift[1]:.0f} px from the spots (median)")
        expected = f"0, or {edge / 2:.0f} px for corners of patches"
        raise BadInput(stored.path, "coords", found, expected)
    return lambda first, last: np.stack([stored.images[i] for i in rows[first:last]])


def _write_adata(path: Path, kept: _Joined, record: dict[str, Any]) -> None:
    table, rows, coords = kept.data.spots, kept.rows, kept.coords
    expression = kept.data.expression
    obs: dict[str, np.ndarray] = {}
    if table.selected is not None:
        obs["in_tissue"] = np.ones(len(rows), dtype=np.int64)
    if table.array is not None:
        obs["array_row"], obs["array_col"] = table.array[rows, 1], table.array[rows, 0]
    obs["pxl_row_in_fullres"], obs["pxl_col_in_fullres"] = coords[:, 1], coords[:, 0]
    obs["total_counts"] = expression.total[kept.expression_rows].astype(np.float32)
    provenance = json.dumps(record, sort_keys=True)
    write_expression(
        path,
        expression.counts[kept.expression_rows],
        kept.barcodes,
        expression.genes,
        coords,
        um_per_px=record["um_per_px"],
        obs=obs,
        var=expression.var,
        uns={
            "sample_id": record["slide"],
            _KEY: {"format": EXPRESSION, "provenance": provenance},
        },
    )
