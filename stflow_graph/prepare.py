"""The prepare stage: H&E images, spot tables and counts to patches and expression files.

It writes a data set in HEST-bench's layout: ``patches/<slide>.h5``, ``adata/<slide>.h5ad`` and, of
a kit, ``splits/`` and a gene list for every fold.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from stflow_graph import __version__
from stflow_graph.choose_genes import GeneRule, choose_genes
from stflow_graph.data.slide import match_barcodes
from stflow_graph.data.splits import Dataset, split_files, write_splits
from stflow_graph.errors import BadInput, attempt_each, plain
from stflow_graph.io.atomic import check_name, sha256
from stflow_graph.io.expression import FORMAT as EXPRESSION
from stflow_graph.io.expression import Expression, write_expression
from stflow_graph.io.hdf5 import open_h5
from stflow_graph.io.images import ImageReader, open_image
from stflow_graph.io.patches import write_patches
from stflow_graph.io.tables import KitSlide, SpotTable, read_counts, read_manifest, read_spots

MANIFEST = "dataset.csv"
_KEY = "stflow_graph"
# of the area that a patch shows, level-0 px: beyond these, um_per_px is a mistake
_LEAST_EDGE, _LARGEST_EDGE = 8, 8192
_BATCH_BYTES = 16 * 2**20

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What one slide became.

    Attributes:
        slide: its name.
        patches: the patch file.
        adata: the expression file.
        n_spots: spots in both.
        not_selected: spots left out because the spot table does not select them.
        only_in_spots: spots left out because they have no counts.
        only_in_counts: spots left out because they have no place.
        n_padded: patches that reach over the image's edge, where they are white.
        pitch_um: median distance of a spot to the nearest other one, µm; NaN for a lone spot. A
            wrong scale shows here.
        complete_before: both files were there, made from the same inputs; nothing was done.
    """

    slide: str
    patches: Path
    adata: Path
    n_spots: int
    not_selected: int
    only_in_spots: int
    only_in_counts: int
    n_padded: int
    pitch_um: float
    complete_before: bool = False


_MEASURED = ("n_spots", "not_selected", "only_in_spots", "only_in_counts", "n_padded", "pitch_um")


@dataclasses.dataclass(frozen=True)
class _Spots:
    """A spot table, the counts, and the rows of both that belong together."""

    table: SpotTable
    expression: Expression
    rows: np.ndarray
    expression_rows: np.ndarray
    not_selected: int
    only_in_spots: int
    only_in_counts: int

    @property
    def barcodes(self) -> list[str]:
        return [self.table.barcodes[i] for i in self.rows]

    @property
    def coords(self) -> np.ndarray:
        return self.table.coords[self.rows]


def prepare_kit(
    kit: str | Path,
    out: str | Path,
    *,
    patch_px: int = 224,
    patch_um: float = 112.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Prepared], None] | None = None,
) -> list[Prepared]:
    """Prepare every slide of a kit, a folder with ``dataset.csv``; see :func:`prepare_slide`.

    Where ``out`` has no ``splits/``, one fold leaves out each patient, or each slide where the
    manifest names fewer than two patients. ``var_50genes_fold<i>.json`` is chosen from the
    training slides of fold i; one list for all folds would have seen their test slides.

    Args:
        kit: the kit's folder.
        out: the data set folder to write.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        overwrite: write also what is there, but for ``splits/``.
        progress: called with the slide's name, the patches written and all its patches.
        report: called after every slide.

    Raises:
        BadInput: the manifest is bad.
        SomeFailed: some slides are bad; the others are written, splits and gene lists are not.
    """
    slides = read_manifest(Path(kit) / MANIFEST)
    out = Path(out)
    work = [
        (
            slide.id,
            partial(
                prepare_slide,
                slide.image,
                slide.spots,
                slide.counts,
                out,
                name=slide.id,
                um_per_px=slide.um_per_px,
                patch_px=patch_px,
                patch_um=patch_um,
                overwrite=overwrite,
                progress=progress,
                report=report,
            ),
        )
        for slide in slides
    ]
    done = attempt_each(work)
    if not (out / "splits").exists():
        _write_splits(out / "splits", slides)
    if (out / "splits").exists():
        _write_gene_lists(out, overwrite)
    return done


def prepare_slide(
    image: str | Path,
    spots: str | Path | None,
    counts: str | Path,
    out: str | Path,
    *,
    name: str,
    um_per_px: float | None = None,
    patch_px: int = 224,
    patch_um: float = 112.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Prepared], None] | None = None,
) -> Prepared:
    """Cut a patch around every spot that has counts; write the patches and the counts.

    Writes ``out/patches/<name>.h5`` and ``out/adata/<name>.h5ad``, spots in the order of the spot
    table. A spot must be in both tables.

    Args:
        image: H&E image at full resolution.
        spots: spot table, see ``io.tables.read_spots``; None takes the places in ``counts``.
        counts: table of spots x genes, or .h5ad with raw counts.
        out: the data set folder to write.
        name: the slide's name.
        um_per_px: micrometres per pixel of the image; None takes what the .h5ad says.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        overwrite: write also what is there.
        progress: called with the slide's name, the patches written and all its patches.
        report: called with the result.

    Raises:
        BadInput: an input is bad, spots lie outside the image, or an output is there that was
            made in another way.
    """
    check_name(name, counts, "id")
    patches = Path(out) / "patches" / f"{name}.h5"
    adata = Path(out) / "adata" / f"{name}.h5ad"
    asked: dict[str, Any] = {
        "slide": name,
        "image_sha256": sha256(image),
        "spots_sha256": "" if spots is None else sha256(spots),
        "counts_sha256": sha256(counts),
        "patch_px": patch_px,
        "patch_um": float(patch_um),
    }
    if um_per_px is not None:
        asked["um_per_px"] = float(um_per_px)
    before = None if overwrite else _complete_before(patches, adata, asked)
    record = before or _write_slide(image, spots, counts, patches, adata, asked, progress)
    measured = {key: record[key] for key in _MEASURED}
    prepared = Prepared(name, patches, adata, **measured, complete_before=before is not None)
    if report is not None:
        report(prepared)
    return prepared


def _complete_before(patches: Path, adata: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the patch file's record if both files are there and were made as asked."""
    records = []
    for file, read in ((patches, _patches_record), (adata, _adata_record)):
        if not file.exists():
            continue
        try:
            record = read(file)
        except BadInput:
            record = {}
        other = [key for key, value in asked.items() if record.get(key) != value]
        if other:
            found = plain("a file made with another " + ", ".join(other))
            fix = "give --overwrite to replace it, or another --out"
            raise BadInput(file, "output", found, "no file, or one made from these inputs", fix)
        records.append(record)
    return records[0] if len(records) == 2 else None


def _patches_record(path: Path) -> dict[str, Any]:
    with open_h5(path) as file:
        return {key: np.asarray(value).tolist() for key, value in file.attrs.items()}


def _adata_record(path: Path) -> dict[str, Any]:
    with open_h5(path) as file:
        try:
            return dict(json.loads(file[f"uns/{_KEY}/provenance"][()]))
        except (KeyError, TypeError, ValueError):
            return {}


def _write_slide(
    image: str | Path,
    spots: str | Path | None,
    counts: str | Path,
    patches: Path,
    adata: Path,
    asked: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """Write both files, each with how it was made, and return what was measured."""
    kept = _join(spots, counts)
    um_per_px = asked.get("um_per_px", kept.expression.um_per_px)
    um_per_px = _check_scale(um_per_px, asked["patch_um"], image)
    edge = asked["patch_um"] / um_per_px  # level-0 px
    with open_image(image) as reader:
        _check_inside(kept.coords, reader.size, counts if spots is None else spots)
        measured = _measure(kept, reader.size, edge, um_per_px)
        made = {**asked, "um_per_px": um_per_px, "version": __version__}
        _write_patches(patches, reader, kept, edge, {**made, **measured}, progress)
    _write_adata(adata, kept, made)
    return measured


def _join(spots: str | Path | None, counts: str | Path) -> _Spots:
    expression = read_counts(counts)
    if spots is not None:
        table = read_spots(spots)
    elif expression.coords is not None:
        table = SpotTable(expression.barcodes, expression.coords)
    else:
        fix = "give a spot table"
        raise BadInput(counts, "obsm['spatial']", plain("nothing"), "the spots' places", fix)
    file = counts if spots is None else spots
    n = len(table.barcodes)
    chosen = np.arange(n) if table.selected is None else np.flatnonzero(table.selected)
    if not len(chosen):
        raise BadInput(file, "selected", plain(f"0 of {n} spots"), "at least one")
    names = [table.barcodes[i] for i in chosen]
    rows, expression_rows = match_barcodes(names, expression.barcodes, file, counts)
    placed = set(table.barcodes)
    return _Spots(
        table,
        expression,
        chosen[rows],
        expression_rows,
        not_selected=n - len(chosen),
        only_in_spots=len(chosen) - len(rows),
        only_in_counts=sum(barcode not in placed for barcode in expression.barcodes),
    )


def _check_scale(um_per_px: float | None, patch_um: float, image: str | Path) -> float:
    if um_per_px is None or not (np.isfinite(um_per_px) and um_per_px > 0):
        fix = "give the micrometres per pixel of this image"
        raise BadInput(image, "um_per_px", um_per_px, "a positive number", fix)
    edge = patch_um / um_per_px
    if not _LEAST_EDGE <= edge <= _LARGEST_EDGE:
        found = plain(f"{um_per_px:g}, so a patch of {patch_um:g} µm is {edge:.4g} px wide")
        raise BadInput(image, "um_per_px", found, f"{_LEAST_EDGE} to {_LARGEST_EDGE} px")
    return um_per_px


def _check_inside(coords: np.ndarray, size: tuple[int, int], file: str | Path) -> None:
    outside = _outside(coords, size)
    if not outside.any():
        return
    (left, top), (right, bottom) = coords.min(axis=0), coords.max(axis=0)
    found = plain(
        f"{outside.sum()} of {len(coords)} spots outside the image: x {left:.0f} to {right:.0f}, "
        f"y {top:.0f} to {bottom:.0f}, image {size[0]} x {size[1]} px"
    )
    if _outside(coords[:, ::-1], size).any():
        fix = "give places in pixels of this image; theirs look like those of another resolution"
    else:
        fix = "swap x and y: exchanged, all lie inside"
    raise BadInput(file, "coordinates", found, "centres inside the image", fix)


def _outside(coords: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.any((coords < 0) | (coords > np.array(size)), axis=1)


def _measure(kept: _Spots, size: tuple[int, int], edge: float, um_per_px: float) -> dict[str, Any]:
    coords = kept.coords
    padded = ((coords < edge / 2) | (coords > np.array(size) - edge / 2)).any(axis=1)
    nearest = cKDTree(coords).query(coords, k=2)[0][:, 1] if len(coords) > 1 else np.nan
    return {
        "n_spots": len(coords),
        "not_selected": kept.not_selected,
        "only_in_spots": kept.only_in_spots,
        "only_in_counts": kept.only_in_counts,
        "n_padded": int(padded.sum()),
        "pitch_um": float(np.median(nearest) * um_per_px),
    }


def _write_patches(
    path: Path,
    reader: ImageReader,
    kept: _Spots,
    edge: float,
    record: dict[str, Any],
    progress: Progress | None,
) -> None:
    size, coords = record["patch_px"], kept.coords
    batch = max(1, _BATCH_BYTES // (3 * size**2))
    with write_patches(
        path,
        kept.barcodes,
        coords,
        size=size,
        size_level0=edge,
        um_per_px=record["um_per_px"],
        attrs=record,
    ) as writer:
        for start in range(0, len(coords), batch):
            centres = coords[start : start + batch]
            writer.append(np.stack([reader.read_patch(x, y, edge, size) for x, y in centres]))
            if progress is not None:
                progress(record["slide"], writer.written, len(coords))


def _write_adata(path: Path, kept: _Spots, record: dict[str, Any]) -> None:
    table, rows, coords = kept.table, kept.rows, kept.coords
    obs: dict[str, np.ndarray] = {}
    if table.selected is not None:
        obs["in_tissue"] = np.ones(len(rows), dtype=np.int64)
    if table.array is not None:
        obs["array_row"], obs["array_col"] = table.array[rows, 1], table.array[rows, 0]
    obs["pxl_row_in_fullres"], obs["pxl_col_in_fullres"] = coords[:, 1], coords[:, 0]
    obs["total_counts"] = kept.expression.total[kept.expression_rows].astype(np.float32)
    provenance = json.dumps(record, sort_keys=True)
    write_expression(
        path,
        kept.expression.counts[kept.expression_rows],
        kept.barcodes,
        kept.expression.genes,
        coords,
        um_per_px=record["um_per_px"],
        obs=obs,
        uns={
            "sample_id": record["slide"],
            _KEY: {"format": EXPRESSION, "provenance": provenance},
        },
    )


def _write_splits(folder: Path, slides: Sequence[KitSlide]) -> None:
    names, patients = ([getattr(s, key) for s in slides] for key in ("id", "patient"))
    groups = patients if len(set(patients)) > 1 else names
    held_out = list(dict.fromkeys(groups))
    if len(held_out) < 2:
        logger.warning("%s: one slide makes no split; none is written", folder)
        return
    if groups is names and patients[0]:
        logger.warning(
            "%s: all slides are of patient %r, so each fold holds out a slide; "
            "`train` wants --allow-patient-overlap for it",
            folder,
            patients[0],
        )
    write_splits(folder, split_files(names, [held_out.index(g) for g in groups], patients))


def _write_gene_lists(out: Path, overwrite: bool) -> None:
    rule = GeneRule()
    folds = [fold.index for fold in Dataset(out.resolve().name, out).folds()]
    wanted = [i for i in folds if overwrite or not (out / rule.file_name(i)).exists()]
    if not wanted:
        return
    try:
        choose_genes(out, rule, folds=wanted, allow_patient_overlap=True, overwrite=overwrite)
    except (
        BadInput
    ) as error:  # few spots or shallow counts; patches and counts are good all the same
        logger.warning("no gene list is written: %s", error)
