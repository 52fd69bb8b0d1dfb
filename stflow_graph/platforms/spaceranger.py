"""Space Ranger's ``outs/`` folder: Visium (versions 1 to 3) and the bins of Visium HD."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import read_object, required_file
from stflow_graph.platforms.array_scale import check_scale, positive, um_per_px_of_array
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions, Sources
from stflow_graph.platforms.tables import read_spots
from stflow_graph.platforms.tenx import read_tenx, software, tenx_files

_COUNTS = "filtered_feature_bc_matrix"
# with the version of Space Ranger that first wrote it
_POSITIONS = {
    "tissue_positions.parquet": "3",
    "tissue_positions.csv": "2",
    "tissue_positions_list.csv": "1",
}
_SCALES = "scalefactors_json.json"
_BINS = "square_*um"
_DEFAULT_BIN_UM = 8
# µm from one place of the array to the next (column, row): spots are 100 µm apart in a hexagonal
# grid, in which columns count half steps
_VISIUM_STEPS = (50.0, 50.0 * 3**0.5)
# the diameter that spot_diameter_fullres refers to (10x's page of Space Ranger's images); the
# printed spots are smaller, 55 µm
_SPOT_UM = 65.0
# a wrong resolution is off by a factor of several; the diameter alone by up to 65 / 55
_MAX_DISAGREEMENT = 1.25


def visium_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slide of a folder that has, or whose ``outs/`` has, a folder ``spatial/``."""
    outs = _outs(folder)
    if not (outs / "spatial").is_dir():
        return {}
    name = _name(outs, options)
    return {name: partial(_source, outs, name, options, None)}


def visium_hd_slides(folder: Path, options: SourceOptions) -> Sources:
    """Return the slide of ``binned_outputs``, or of the folder of one bin.

    Its bins are ``options.bin_um`` µm wide, 8 if None.

    Raises:
        BadInput: no such bins; the message lists those there.
    """
    bins = _bin_folders(folder)
    if not bins:
        return {}
    size = options.bin_um or (next(iter(bins)) if len(bins) == 1 else _DEFAULT_BIN_UM)
    if size not in bins:
        found = unquoted("bins of " + ", ".join(f"{bin_um} µm" for bin_um in sorted(bins)))
        raise BadInput(folder, "bins", found, f"bins of {size} µm", "choose one with --bin-um")
    chosen = bins[size]
    outs = chosen.parent.parent if chosen.parent.name == "binned_outputs" else chosen
    name = _name(outs, options)
    return {name: partial(_source, chosen, name, options, size)}


def _outs(folder: Path) -> Path:
    return folder / "outs" if (folder / "outs").is_dir() else folder


def _name(outs: Path, options: SourceOptions) -> str:
    outs = outs.resolve()
    return options.name or (outs.parent.name if outs.name == "outs" else outs.name)


def _counts(outs: Path) -> Path | None:
    # files of 10x's public data sets carry the data set's name in front
    files = sorted(outs.glob(f"*{_COUNTS}.h5"))
    if len(files) == 1:
        return files[0]
    return outs / _COUNTS if (outs / _COUNTS).is_dir() else None


def _bin_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of bins by size, µm."""
    outs = _outs(folder)
    inner = outs / "binned_outputs"
    parent = inner if inner.is_dir() else outs
    folders = [folder] if folder.match(_BINS) else list(parent.glob(_BINS))
    sizes = {path.name.removeprefix("square_").removesuffix("um"): path for path in folders}
    return {int(size): path for size, path in sizes.items() if size.isdigit() and path.is_dir()}


def _source(folder: Path, name: str, options: SourceOptions, bin_um: int | None) -> SlideSource:
    counts = _counts(folder) or required_file(folder, "counts", [f"{_COUNTS}.h5", _COUNTS])
    spatial = folder / "spatial"
    positions = required_file(spatial, "positions", _POSITIONS)
    inputs = {**tenx_files(counts), "spots": positions}
    if (spatial / _SCALES).is_file():
        inputs["scalefactors"] = spatial / _SCALES
    release = "" if counts.is_dir() else software(counts).removeprefix("spaceranger-").split("-")[0]
    version = f"Space Ranger {release or _POSITIONS[positions.name]}"
    settings: dict[str, str | float] = {"gene_names": options.gene_names}
    if bin_um is not None:
        settings["bin_um"] = bin_um
    return SlideSource(
        name,
        inputs,
        partial(_read, counts, inputs, options.gene_names, bin_um),
        platform=f"Visium, {version}" if bin_um is None else f"Visium HD, {version}",
        unit="spots under tissue" if bin_um is None else f"bins of {bin_um} µm under tissue",
        settings=settings,
    )


def _read(
    counts: Path, inputs: Mapping[str, Path], gene_names: str, bin_um: int | None
) -> SlideData:
    spots = read_spots(inputs["spots"])
    steps = _VISIUM_STEPS if bin_um is None else (float(bin_um), float(bin_um))
    measured = um_per_px_of_array(spots, steps)
    stated = None
    if "scalefactors" in inputs:
        stated = _stated_scale(inputs["scalefactors"], bin_um)
    if measured is not None and stated is not None:
        check_scale(measured, stated, _MAX_DISAGREEMENT, inputs["spots"], _SCALES)
    expression = read_tenx(counts, gene_names)
    exact = stated if bin_um is not None else None
    return SlideData(spots, expression, exact or measured or stated)


def _stated_scale(path: Path, bin_um: int | None) -> float | None:
    """Return the µm/px in the scale factors, None if they have neither key."""
    factors = read_object(path)
    if bin_um is not None and factors.get("bin_size_um", bin_um) != bin_um:
        raise BadInput(
            path, "bin_size_um", factors["bin_size_um"], f"{bin_um}, as in the folder's name"
        )
    key = "spot_diameter_fullres" if bin_um is None else "microns_per_pixel"
    if factors.get(key) is None:
        return None
    value = positive(factors[key], path, key)
    return _SPOT_UM / value if bin_um is None else value
