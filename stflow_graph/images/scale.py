"""Micrometres per pixel from an image's metadata.

Sources: Aperio's description of an SVS (``MPP``), OME-XML (``PhysicalSizeX``), the TIFF tags
XResolution and ResolutionUnit, OpenSlide's ``openslide.mpp-x``. DPI tags of JPEG and
PNG files are meant for printing and ignored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import tifffile

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.columns import as_number

# range of microscopes; a resolution of 72 or 300 dpi is a printer's
_MIN_UM, _MAX_UM = 0.05, 20.0
_ISOTROPIC = 0.01
_AGREEMENT = 0.05
# by more than this factor, two scales are of images of different resolution
_CONTRADICTION = 1.8
_UM_OF_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre
_UM_OF_OME_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}

_FIX = "give the image that the spots' positions refer to, or its scale (--um-per-px)"
_FIX_OF_OPTION = "give that of the metadata; if these are wrong, save the image without them"

logger = logging.getLogger(__name__)
_Sizes = tuple[float | None, float | None]


def scale_of_tiff(path: Path, tiff: tifffile.TiffFile) -> float | None:
    """Return the micrometres per pixel of a TIFF's first image, None if unknown.

    Args:
        path: the file, for messages.
        tiff: the open file.

    Raises:
        BadInput: its pixels are not square.
    """
    page = tiff.pages.first
    for sizes in (_of_aperio(page.description), _of_ome(tiff.ome_metadata or ""), _of_tags(page)):
        if (scale := _square(path, sizes)) is not None:
            return scale
    return None


def scale_of_openslide(path: Path, properties: Mapping[str, str]) -> float | None:
    """Return the micrometres per pixel from OpenSlide's properties, None if unknown.

    Args:
        path: the file, for messages.
        properties: those of ``openslide.OpenSlide``.

    Raises:
        BadInput: its pixels are not square.
    """
    x, y = (as_number(properties.get(f"openslide.mpp-{axis}", "")) for axis in "xy")
    return _square(path, (x, y))


def agreed_scale(image: str | Path, option: float | None, stored: float | None) -> float | None:
    """Return the user's micrometres per pixel or else the stored ones; warn of a difference.

    Args:
        image: the file, for the warning.
        option: the user's value.
        stored: the value in the files, such as the image's metadata.
    """
    if option is None:
        return stored
    if stored is not None and abs(option / stored - 1) > _AGREEMENT:
        logger.warning(
            "%s: um_per_px %g as given overrides %.4g in the files", image, option, stored
        )
    return option


def scale_of_slide(
    image: str | Path,
    option: float | None,
    files: float | None,
    own: float | None,
    *,
    own_first: bool = False,
) -> float | None:
    """Return the scale of a slide, the user's or else the files'; warn of a difference.

    Args:
        image: the image file, for messages.
        option: micrometres per pixel from the user.
        files: those in the files of the spots, such as of a platform's array.
        own: those in the image's metadata.
        own_first: whether the metadata are more reliable than the files.

    Raises:
        BadInput: two of them contradict each other, see :func:`check_no_contradiction`.
    """
    stored = (own, files) if own_first else (files, own)
    taken = stored[1] if stored[0] is None else stored[0]
    check_no_contradiction(image, option, taken, own, files)
    return agreed_scale(image, option, agreed_scale(image, *stored))


def check_no_contradiction(
    image: str | Path,
    option: float | None,
    stored: float | None,
    own: float | None,
    files: float | None = None,
) -> None:
    """Refuse a scale that differs from that of the image's metadata by a factor of 1.8 or more.

    A scale that both the user and the files state passes: then the metadata are wrong.

    Args:
        image: the image file, for messages.
        option: micrometres per pixel from the user.
        stored: those that are taken where the user gives none.
        own: those in the image's metadata.
        files: those in the files of the spots.

    Raises:
        BadInput: shows both.
    """
    scale = stored if option is None else option
    if scale is None or own is None or not _contradict(scale, own):
        return
    if option is not None and files is not None and not _contradict(option, files):
        return
    by, fix = ("of the spots", _FIX) if option is None else ("as given", _FIX_OF_OPTION)
    found = unquoted(f"{scale:.4g} {by}, {own:.4g} in the image's metadata")
    raise BadInput(image, "um_per_px", found, "one scale", fix)


def _contradict(one: float, other: float) -> bool:
    # a scale that is no positive number has an error of its own
    return one > 0 and other > 0 and not 1 / _CONTRADICTION < one / other < _CONTRADICTION


def _of_aperio(description: str) -> _Sizes:
    match = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", description)
    value = as_number(match.group(1)) if match and description.startswith("Aperio") else None
    return value, value


def _of_ome(xml: str) -> _Sizes:
    match = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', match.group(0))) if match else {}
    sizes = []
    for axis in "XY":
        value = as_number(attributes.get(f"PhysicalSize{axis}", ""))
        unit = _UM_OF_OME_UNIT.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(None if value is None or unit is None else value * unit)
    return sizes[0], sizes[1]


def _of_tags(page: tifffile.TiffPage) -> _Sizes:
    unit = _UM_OF_TIFF_UNIT.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    sizes = []
    for axis in "XY":
        value = page.tags.valueof(f"{axis}Resolution", default=None)
        per_unit = value[0] / value[1] if isinstance(value, tuple) and value[1] else 0.0
        sizes.append(unit / per_unit if unit and per_unit > 0 else None)
    return sizes[0], sizes[1]


def _square(path: Path, sizes: _Sizes) -> float | None:
    plausible = [size for size in sizes if size is not None and _MIN_UM <= size <= _MAX_UM]
    if len(plausible) == 2 and abs(plausible[0] / plausible[1] - 1) > _ISOTROPIC:
        found = unquoted(f"{plausible[0]:g} x {plausible[1]:g} µm")
        fix = "resample the image to square pixels"
        raise BadInput(path, "pixel size", found, "as wide as high", fix)
    return plausible[0] if plausible and sizes[0] == plausible[0] else None
