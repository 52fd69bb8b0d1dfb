"""The prepare stage for a slide without spots and counts: patches on a grid over its tissue.

``embed`` and ``sample`` then predict expression for an H&E slide without spatial transcriptomics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stflow_graph.images.open import check_image, open_image
from stflow_graph.images.overlay import Overview, draw_overlay, overlay_path
from stflow_graph.images.scale import check_no_contradiction, scale_of_slide
from stflow_graph.io.atomic import check_name, sha256, write_bytes
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.versions import unchanged
from stflow_graph.preparation.cut_patches import (
    Progress,
    check_scale,
    cut_patches,
    patch_reader,
    patches_record,
    up_to_date_record,
)
from stflow_graph.preparation.places import Layout, grid_places
from stflow_graph.version import __version__


@dataclasses.dataclass(frozen=True)
class PreparedGrid:
    """The patches of one slide.

    Attributes:
        slide: its name.
        patches: the patch file.
        n_rows: of the whole grid.
        n_columns: of the whole grid.
        n_patches: grid points with enough tissue.
        tissue: share of the slide that is tissue.
        um_per_px: micrometres per level-0 pixel.
        up_to_date: the file existed, made from the same image; nothing was done.
    """

    slide: str
    patches: Path
    n_rows: int
    n_columns: int
    n_patches: int
    tissue: float
    um_per_px: float
    up_to_date: bool = False


def prepare_grid(
    image: str | Path,
    out: str | Path,
    *,
    name: str,
    um_per_px: float | None = None,
    patch_px: int = 224,
    patch_um: float = 112.0,
    pitch_um: float | None = None,
    layout: Layout = "square",
    min_tissue: float = 0.1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PreparedGrid:
    """Cut patches on a grid over a slide's tissue and write ``out/patches/<name>.h5``.

    ``out/overlays/<name>.png`` shows where they lie; the grid is that of
    ``preparation.places.grid_places``.

    Args:
        image: H&E image or whole slide at full resolution.
        out: the data set folder to write.
        name: the slide's name.
        um_per_px: micrometres per pixel of the image; None takes its metadata's.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        pitch_um: from one patch to the next, µm; None leaves no gap and no overlap.
        layout: ``"square"`` or ``"hexagonal"``.
        min_tissue: share of a patch that must be tissue, 0 .. 1; 0 keeps all.
        overwrite: replace an existing output.
        progress: called with the slide's name, the patches written and all its patches.

    Raises:
        BadInput: the image is bad, its scale unknown, smaller than a patch or without tissue, or
            the output was made in another way.
    """
    check_name(name, image, "id")
    path = check_output_folder(out) / "patches" / f"{name}.h5"
    with unchanged(image) as versions:
        # before it is hashed, which takes minutes: a bad image is refused at once
        own = check_image(image)
        check_no_contradiction(image, um_per_px, own, own)
        check_scale(own if um_per_px is None else um_per_px, patch_um, image)
        request: dict[str, Any] = {
            "slide": name,
            "image_sha256": sha256(image),
            "patch_px": patch_px,
            "patch_um": float(patch_um),
            "pitch_um": float(patch_um if pitch_um is None else pitch_um),
            "min_tissue": float(min_tissue),
        }
        if um_per_px is not None:
            request["um_per_px"] = float(um_per_px)
        if layout != "square":
            request["layout"] = layout
        stored = None if overwrite else up_to_date_record(path, patches_record, request)
        record = stored or _write(path, image, request, progress, versions.check)
    fields = dataclasses.fields(PreparedGrid)
    measured = {field.name: record[field.name] for field in fields if field.name in record}
    return PreparedGrid(patches=path, **measured, up_to_date=stored is not None)


def _write(
    path: Path,
    image: str | Path,
    request: dict[str, Any],
    progress: Progress | None,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Write the patch file, unless ``check`` raises at its end; return its record."""
    with open_image(image) as reader:
        um_per_px = scale_of_slide(image, request.get("um_per_px"), None, reader.um_per_px)
        um_per_px = check_scale(um_per_px, request["patch_um"], image)
        options = {key: request[key] for key in ("patch_um", "pitch_um", "min_tissue")}
        layout = request.get("layout", "square")
        places = grid_places(reader, um_per_px, layout=layout, **options)
        record = {**request, "um_per_px": um_per_px, **places.record, "version": __version__}
        read = patch_reader(reader, places.coords, places.edge, request["patch_px"])
        cut_patches(
            path, read, places.barcodes, places.coords, places.edge, record, progress, check
        )
        overview = places.overview or Overview.of(reader)
        drawn = draw_overlay(reader, overview, places.coords, um_per_px, name=request["slide"])
    write_bytes(overlay_path(path.parents[1], request["slide"]), drawn)
    return record
