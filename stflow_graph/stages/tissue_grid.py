"""Patches on a grid over the tissue of a slide that has no spots and no counts.

What ``embed`` and ``sample`` make of them is the expression that a model expects there: spatial
transcriptomics of a slide that was only stained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.images.open import open_image
from stflow_graph.images.reader import ImageReader
from stflow_graph.images.scale import agreed_scale
from stflow_graph.images.tissue_mask import tissue_mask, tissue_share
from stflow_graph.io.atomic import check_name, sha256
from stflow_graph.preparation.cut_patches import (
    Progress,
    check_scale,
    cut_patches,
    from_image,
    made_before,
    patches_record,
)
from stflow_graph.version import __version__

# pixels of the overview along a patch's edge: the share of tissue is right within a few percent
_OVERVIEW_PX = 16


@dataclasses.dataclass(frozen=True)
class PreparedGrid:
    """What a slide became.

    Attributes:
        slide: its name.
        patches: the patch file.
        n_rows: of the whole grid.
        n_columns: of the whole grid.
        n_patches: of its places, those with tissue.
        tissue: share of the slide that is tissue.
        um_per_px: micrometres per level-0 pixel.
        complete_before: the file was there, made from the same image; nothing was done.
    """

    slide: str
    patches: Path
    n_rows: int
    n_columns: int
    n_patches: int
    tissue: float
    um_per_px: float
    complete_before: bool = False


_MEASURED = ("n_rows", "n_columns", "n_patches", "tissue", "um_per_px")


def prepare_grid(
    image: str | Path,
    out: str | Path,
    *,
    name: str,
    um_per_px: float | None = None,
    patch_px: int = 224,
    patch_um: float = 112.0,
    pitch_um: float | None = None,
    min_tissue: float = 0.1,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[PreparedGrid], None] | None = None,
) -> PreparedGrid:
    """Cut patches on a grid over a slide's tissue and write ``out/patches/<name>.h5``.

    The grid starts in the top-left corner, and its patches lie inside the image; a patch is named
    ``<row>x<column>``. What is tissue, ``images.tissue_mask`` says.

    Args:
        image: H&E image or whole slide at full resolution.
        out: the data set folder to write.
        name: the slide's name.
        um_per_px: micrometres per pixel of the image; None takes what its metadata say.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        pitch_um: from one patch to the next, µm; None leaves no gap and no overlap.
        min_tissue: share of a patch that must be tissue, 0 .. 1; 0 keeps all.
        overwrite: write also what is there.
        progress: called with the slide's name, the patches written and all its patches.
        report: called with the result.

    Raises:
        BadInput: the image is bad, its scale unknown, smaller than a patch or without tissue, or
            the output was made in another way.
    """
    check_name(name, image, "id")
    path = Path(out) / "patches" / f"{name}.h5"
    asked: dict[str, Any] = {
        "slide": name,
        "image_sha256": sha256(image),
        "patch_px": patch_px,
        "patch_um": float(patch_um),
        "pitch_um": float(patch_um if pitch_um is None else pitch_um),
        "min_tissue": float(min_tissue),
    }
    if um_per_px is not None:
        asked["um_per_px"] = float(um_per_px)
    before = None if overwrite else made_before(path, patches_record, asked)
    record = before or _write(path, image, asked, progress)
    measured = {key: record[key] for key in _MEASURED}
    prepared = PreparedGrid(name, path, **measured, complete_before=before is not None)
    if report is not None:
        report(prepared)
    return prepared


def _write(
    path: Path, image: str | Path, asked: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    """Write the patches with how they were made, and return that."""
    with open_image(image) as reader:
        um_per_px = agreed_scale(image, asked.get("um_per_px"), reader.um_per_px)
        um_per_px = check_scale(um_per_px, asked["patch_um"], image)
        edge, pitch = asked["patch_um"] / um_per_px, asked["pitch_um"] / um_per_px
        n_columns, n_rows = (int((length - edge) // pitch) + 1 for length in reader.size)
        if min(n_columns, n_rows) < 1:
            found = unquoted(f"{reader.size[0]} x {reader.size[1]} px")
            raise BadInput(image, "size", found, f"at least one patch of {edge:.0f} px")
        rows, columns = (part.ravel() for part in np.mgrid[:n_rows, :n_columns])
        centres = edge / 2 + pitch * np.stack([columns, rows], axis=1)
        tissue, share = _tissue(reader, centres, edge)
        kept = np.flatnonzero(share >= asked["min_tissue"])
        if not len(kept):
            found = unquoted(f"0 of {len(centres)} patches with {asked['min_tissue']:.0%} of it")
            raise BadInput(image, "tissue", found, "at least one", "lower --min-tissue")
        record = {
            **asked,
            "um_per_px": um_per_px,
            "n_rows": n_rows,
            "n_columns": n_columns,
            "n_patches": len(kept),
            "tissue": tissue,
            "version": __version__,
        }
        barcodes = [f"{rows[i]}x{columns[i]}" for i in kept]
        read = from_image(reader, centres[kept], edge, asked["patch_px"])
        cut_patches(path, read, barcodes, centres[kept], edge, record, progress)
    return record


def _tissue(reader: ImageReader, centres: np.ndarray, edge: float) -> tuple[float, np.ndarray]:
    """Return the share of tissue in the whole image and in each patch."""
    shrinkage = max(1.0, edge / _OVERVIEW_PX)
    mask = tissue_mask(reader.read_overview(shrinkage))
    return float(mask.mean()), tissue_share(mask, centres / shrinkage, edge / shrinkage)
