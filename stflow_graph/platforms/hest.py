"""HEST-1k: ``st/<id>.h5ad``, ``wsis/<id>.tif``, ``metadata/<id>.json`` and ``patches/<id>.h5``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import read_object
from stflow_graph.io.expression import read_expression
from stflow_graph.platforms.array_scale import positive
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources, places_of

# in HEST's order of trust: from the spots' distances, from the image's metadata
_SCALES = ("pixel_size_um_estimated", "pixel_size_um_embedded")


def hest_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the samples of ``st/``, beside which there are images, patches or metadata."""
    if not any((folder / part).is_dir() for part in ("wsis", "patches", "metadata")):
        return {}
    return {
        counts.stem: partial(_source, folder, counts, options)
        for counts in sorted((folder / "st").glob("*.h5ad"))
    }


def _source(folder: Path, counts: Path, options: SourceOptions) -> SlideSource:
    name, inputs = counts.stem, {"counts": counts}
    for role, file in (
        ("image", folder / "wsis" / f"{name}.tif"),
        ("metadata", folder / "metadata" / f"{name}.json"),
        ("patches", folder / "patches" / f"{name}.h5"),
    ):
        if file.is_file():
            inputs[role] = file
    if options.image is None and not inputs.keys() & {"image", "patches"}:
        expected = f"wsis/{name}.tif or patches/{name}.h5"
        raise BadInput(folder, f"image of {name}", unquoted("no file"), expected)
    return SlideSource(name, inputs, partial(_read, inputs), platform="HEST-1k")


def _read(inputs: Mapping[str, Path]) -> SlideData:
    expression = read_expression(inputs["counts"], number_duplicates=True)
    scale = expression.um_per_px
    if "metadata" in inputs:
        file, metadata = inputs["metadata"], read_object(inputs["metadata"])
        key = next((key for key in _SCALES if metadata.get(key) is not None), None)
        scale = scale if key is None else positive(metadata[key], file, key)
    return SlideData(places_of(expression, inputs["counts"]), expression, scale)
