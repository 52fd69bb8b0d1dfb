"""Features of a grid of patches in the layouts of TRIDENT and CLAM: places, no barcodes.

Both write ``features [N, F]`` and ``coords [N, 2]``, the patches' top-left corners in level-0
pixels. TRIDENT stores the patches' size in the attributes of ``coords``; CLAM in the file of
coordinates that the features were made from. Keys as in ``trident/IO.py`` and
``trident/wsi_objects/WSI.py`` (mahmoodlab/TRIDENT), ``extract_features_fp.py`` and
``wsi_core/WholeSlideImage.py`` (mahmoodlab/CLAM).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.coords import check_coords, median_pitch
from stflow_graph.io.hdf5 import check_unique, dataset, open_h5

# names of TRIDENT and CLAM that differ from ours; names in neither are compared by width alone
_OUR_NAMES = {
    "hoptimus0": "h_optimus_0",
    "hoptimus1": "h_optimus_1",
    "h0-mini": "h0_mini",
    "kaiko-vits8": "kaiko_s8",
    "kaiko-vits16": "kaiko_s16",
    "kaiko-vitb8": "kaiko_b8",
    "kaiko-vitb16": "kaiko_b16",
    "kaiko-vitl14": "kaiko_l14",
    "lunit-vits8": "lunit_s8",
    "resnet50_trunc": "resnet50",
    "conch_v15": "conch_v1_5",
    "midnight12k": "midnight",
    "genbio-pathfm": "genbio_pathfm",
}
_SAME_NAMES = {
    *("uni_v1", "uni_v2", "conch_v1", "gigapath", "virchow", "virchow2", "phikon"),
    *("phikon_v2", "hibou_l", "ctranspath", "gpfm", "resnet50"),
}
_FOLDER = "features_"  # TRIDENT's folder of features: features_<encoder>
# of the expected distance between neighbours: closer ones are not in level-0 pixels, and none are
# closer than the second where the overlap is stated
_MIN_STEP, _MIN_STATED = 0.45, 0.75

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GridPatches:
    """The places and known attributes of the patches of a feature file.

    Attributes:
        coords: ``[N, 2]`` float64, level-0 pixels (x, y) of the patches' centres.
        barcodes: N names, ``<x>x<y>`` of the top-left corner.
        attrs: ``convention``, ``patch_size_level0`` and, where known, ``um_per_px`` (then
            ``um_per_px_estimated``).
    """

    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]


def read_grid_patches(path: str | Path, coords: h5py.Dataset, n: int) -> GridPatches:
    """Read the places of a feature file's patches.

    Micrometres per pixel are not stored; they are estimated as 10 µm over the magnification (0.25
    at 40x), as TRIDENT does. Where no file has the size of the patches, it is estimated as the
    grid's step, with a warning.

    Args:
        path: the feature file.
        coords: its ``coords``, or those of the file that the features were made from.
        n: number of features.

    Raises:
        BadInput: shape or length do not fit, not finite, the same place twice, corners outside
            the slide, or places much closer together than the stated patches can be.
    """
    corners = check_coords(coords[()], path, "coords", n)
    barcodes = [f"{x:.0f}x{y:.0f}" for x, y in corners]
    check_unique(barcodes, path, "coords")
    attrs = _numbers(coords.attrs)
    for other in coords_files(Path(path)):
        if _size_level0(attrs) is None:
            with open_h5(other) as file:
                attrs |= _numbers(dataset(file, ["coords"]).attrs)
    _check_inside(path, corners, attrs)
    size = _size_level0(attrs)
    step = median_pitch(corners)
    if size is None:
        size = step
        logger.warning(
            "%s: without the size of its patches; estimated as the grid's step, %.0f px", path, size
        )
    elif n > 1:
        _check_step(path, step, size, attrs)
    stated: dict[str, Any] = {"convention": "centre", "patch_size_level0": size}
    if attrs.get("level0_magnification", 0) > 0:
        um_per_px = 10 / attrs["level0_magnification"]
        stated |= {"um_per_px": um_per_px, "um_per_px_estimated": True}
    return GridPatches(corners + size / 2, barcodes, stated)


def _check_step(path: str | Path, step: float, size: float, attrs: Mapping[str, float]) -> None:
    """Check that neighbours are as far apart as patches of this size and overlap can be."""
    ratio = step / max(size * (1 - _overlap(attrs)), 1e-9)
    evidence = f"patches {step:g} px apart, though {size:g} px wide"
    if "overlap" in attrs:
        evidence += f" and overlapping by {_overlap(attrs):.0%}"
    if ratio < (_MIN_STATED if "overlap" in attrs else _MIN_STEP):
        expected = "level-0 pixels, as for patch_size_level0"
        fix = f"multiply the places by {1 / ratio:.3g}, if they are of a reduced image"
        raise BadInput(path, "coords", unquoted(evidence), expected, fix if step > 0 else None)
    if ratio < _MIN_STATED:
        logger.warning(
            "%s: coords: %s: either they overlap, or the places are of an image reduced to %.2f",
            *(path, evidence, ratio),
        )


def encoder_of(path: str | Path, features: Mapping[str, Any]) -> str | None:
    """Return our name of the encoder of a feature file, None if unknown.

    Args:
        path: the feature file; TRIDENT names its folder ``features_<encoder>``.
        features: attributes of the file's ``features``; newer files have ``encoder``.
    """
    folder = Path(path).resolve().parent.name
    by_folder = folder.removeprefix(_FOLDER) if folder.startswith(_FOLDER) else ""
    name = str(features.get("encoder", by_folder))
    return name if name in _SAME_NAMES else _OUR_NAMES.get(name)


def coords_files(path: Path) -> list[Path]:
    """Return the files with the places of a feature file's patches, in their tools' layouts.

    CLAM has ``pt_files/<slide>.pt`` beside ``h5_files/<slide>.h5`` and ``patches/<slide>.h5``,
    TRIDENT ``features_<encoder>/<slide>.pt`` beside ``patches/<slide>_patches.h5``.
    """
    folder, slide = path.parent, path.stem
    above = folder.parent
    folders = [above / "patches", folder / "patches", above.parent / "patches"]
    if path.suffix == ".pt":
        folders = [above / "h5_files", folder, *folders]
    places = [place / name for place in folders for name in (f"{slide}.h5", f"{slide}_patches.h5")]
    return [place for place in places if place.is_file()]


def _numbers(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Return the attributes that are numbers; CLAM stores the downsample of both axes."""
    firsts = {key: np.asarray(value).reshape(-1)[:1] for key, value in attrs.items()}
    return {
        key: float(first[0])
        for key, first in firsts.items()
        if first.size and first.dtype.kind in "iuf" and np.isfinite(first[0])
    }


def _size_level0(attrs: Mapping[str, float]) -> float | None:
    stored, size = attrs.get("patch_size_level0"), attrs.get("patch_size", 0)
    source, target = attrs.get("level0_magnification", 0), attrs.get("target_magnification", 0)
    if stored is not None and stored > 0:
        return stored
    if size > 0 and source > 0 and target > 0:
        return size * source / target
    if size > 0 and attrs.get("downsample", 0) > 0:
        return size * attrs["downsample"] * attrs.get("custom_downsample", 1)
    return size if size > 0 and attrs.get("patch_level") == 0 else None


def _overlap(attrs: Mapping[str, float]) -> float:
    size = attrs.get("patch_size", 0)
    return min(max(attrs.get("overlap", 0) / size, 0), 1) if size > 0 else 0


def _check_inside(path: str | Path, corners: np.ndarray, attrs: Mapping[str, float]) -> None:
    if not {"level0_width", "level0_height"} <= attrs.keys():
        return
    size = np.array([attrs["level0_width"], attrs["level0_height"]])
    outside = int((corners >= size).any(axis=1).sum())
    if outside:
        found = unquoted(
            f"{outside} of {len(corners)} corners beyond {size[0]:.0f} x {size[1]:.0f}"
        )
        raise BadInput(path, "coords", found, "level-0 pixels inside the slide")
