"""Space Ranger's ``outs/`` folder: Visium (versions 1 to 3) and the bins of Visium HD."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import listed, read_object
from stflow_graph.platforms.array_scale import check_scale, positive, um_per_px_of_array
from stflow_graph.platforms.source import SlideData, SlideSource, SourceOptions
from stflow_graph.platforms.tables import read_spots
from stflow_graph.platforms.tenx import read_tenx, software, tenx_files

_COUNTS = "filtered_feature_bc_matrix"
_POSITIONS = (
    ("tissue_positions.parquet", "3"),
    ("tissue_positions.csv", "2"),
    ("tissue_positions_list.csv", "1"),
)
_SCALES = "scalefactors_json.json"
_BINS = "square_*um"
_DEFAULT_BIN_UM = 8
# µm from one place of the array to the next (column, row): spots are 100 µm apart in a hexagonal
# grid, in which columns count half steps
_VISIUM_STEPS = (50.0, 50.0 * 3**0.5)
# what spot_diameter_fullres is the diameter of (10x's page of Space Ranger's images); the printed
# spots are smaller, 55 µm
_SPOT_UM = 65.0
# a wrong resolution is off by a factor of several; the diameter alone by up to 65 / 55
_LARGEST_DISAGREEMENT = 1.25


def is_visium(folder: Path) -> bool:
    """Say whether a folder, or its ``outs/``, has a matrix and the positions of spots."""
    outs = _outs(folder)
    return _counts(outs) is not None and (outs / "spatial").is_dir()


def is_visium_hd(folder: Path) -> bool:
    """Say whether a folder, or its ``outs/``, has ``binned_outputs`` or is of one bin."""
    return bool(_bin_folders(folder))


def visium_source(folder: Path, options: SourceOptions) -> SlideSource:
    """Return the source of a Visium slide.

    Raises:
        BadInput: a file is missing; the message lists those found.
    """
    outs = _outs(folder)
    return _source(outs, _name(outs, options), options, None)


def visium_hd_source(folder: Path, options: SourceOptions) -> SlideSource:
    """Return the source of a Visium HD slide in bins of ``options.bin_um`` µm, 8 if None.

    Raises:
        BadInput: no such bins (lists those there), or a file is missing.
    """
    bins = _bin_folders(folder)
    wanted = options.bin_um or (next(iter(bins)) if len(bins) == 1 else _DEFAULT_BIN_UM)
    if wanted not in bins:
        sizes = ", ".join(f"{size} µm" for size in sorted(bins))
        found = unquoted(f"bins of {sizes}") if bins else listed(folder)
        raise BadInput(folder, "bins", found, f"bins of {wanted} µm", "choose one with --bin-um")
    chosen = bins[wanted]
    outs = chosen.parent.parent if chosen.parent.name == "binned_outputs" else chosen
    return _source(chosen, _name(outs, options), options, wanted)


def _outs(folder: Path) -> Path:
    return folder / "outs" if (folder / "outs").is_dir() else folder


def _name(outs: Path, options: SourceOptions) -> str:
    outs = outs.resolve()
    return options.name or (outs.parent.name if outs.name == "outs" else outs.name)


def _counts(outs: Path) -> Path | None:
    # files of 10x's public data sets carry the data set's name in front
    found = sorted(outs.glob(f"*{_COUNTS}.h5"))
    if len(found) == 1:
        return found[0]
    return outs / _COUNTS if (outs / _COUNTS).is_dir() else None


def _bin_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of bins by size, µm."""
    outs = _outs(folder)
    inner = outs / "binned_outputs"
    where = inner if inner.is_dir() else outs
    places = [folder] if folder.match(_BINS) else list(where.glob(_BINS))
    sizes = {path.name.removeprefix("square_").removesuffix("um"): path for path in places}
    return {int(size): path for size, path in sizes.items() if size.isdigit() and path.is_dir()}


def _source(folder: Path, name: str, options: SourceOptions, bin_um: int | None) -> SlideSource:
    counts = _counts(folder)
    if counts is None:
        raise BadInput(folder, "counts", listed(folder), f"{_COUNTS}.h5 or {_COUNTS}/")
    spatial = folder / "spatial"
    found = [(spatial / file, age) for file, age in _POSITIONS if (spatial / file).is_file()]
    if not found:
        expected = " or ".join(file for file, _ in _POSITIONS)
        raise BadInput(spatial, "positions", listed(spatial), expected)
    positions, age = found[0]
    inputs = {**tenx_files(counts), "spots": positions}
    if (spatial / _SCALES).is_file():
        inputs["scalefactors"] = spatial / _SCALES
    if options.image is not None:
        inputs["image"] = options.image
    release = "" if counts.is_dir() else software(counts).removeprefix("spaceranger-").split("-")[0]
    version = f"Space Ranger {release or age}"
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
        um_per_px=options.um_per_px,
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
        check_scale(measured, stated, _LARGEST_DISAGREEMENT, inputs["spots"], _SCALES)
    expression = read_tenx(counts, gene_names)
    exact = stated if bin_um is not None else None
    return SlideData(spots, expression, exact or measured or stated)


def _stated_scale(path: Path, bin_um: int | None) -> float | None:
    """Return the µm/px that the scale factors tell, None if they have neither key."""
    factors = read_object(path)
    if bin_um is not None and factors.get("bin_size_um", bin_um) != bin_um:
        raise BadInput(path, "bin_size_um", factors["bin_size_um"], f"{bin_um}, as the folder says")
    key = "spot_diameter_fullres" if bin_um is None else "microns_per_pixel"
    if factors.get(key) is None:
        return None
    value = positive(factors[key], path, key)
    return _SPOT_UM / value if bin_um is None else value
