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

from stflow_graph.data.splits import Dataset, split_files, write_splits
from stflow_graph.errors import BadInput, attempt_each
from stflow_graph.io.atomic import check_name
from stflow_graph.io.hdf5 import open_h5
from stflow_graph.platforms.detect import find_slides
from stflow_graph.platforms.kit import is_kit
from stflow_graph.platforms.source import NO_OPTIONS, SlideSource, SourceOptions, tables_source
from stflow_graph.preparation.cut_patches import Progress, made_before, patches_record
from stflow_graph.preparation.cut_slide import KEY, cut_slide
from stflow_graph.preparation.gene_lists import DEFAULT_RULE, write_gene_lists

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What one slide became.

    Attributes:
        slide: its name.
        patches: the patch file.
        adata: the expression file.
        n_spots: spots in both.
        not_selected: spots left out because the spot table, or the patch file that the slide came
            with, does not select them.
        only_in_spots: spots left out because they have no counts.
        only_in_counts: spots left out because they have no place.
        n_padded: patches that reach over the image's edge, where they are white.
        pitch_um: median distance of a spot to the nearest other one, µm; NaN for a lone spot. A
            wrong scale shows here.
        um_per_px: micrometres per pixel of the image.
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
    um_per_px: float
    complete_before: bool = False


_MEASURED = (
    "n_spots",
    "not_selected",
    "only_in_spots",
    "only_in_counts",
    "n_padded",
    "pitch_um",
    "um_per_px",
)


def prepare_source(
    source: str | Path,
    out: str | Path,
    options: SourceOptions = NO_OPTIONS,
    *,
    format: str | None = None,
    patch_px: int = 224,
    patch_um: float = 112.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Prepared], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Prepared]:
    """Prepare the slides of a folder of any platform; see ``platforms.detect.find_slides``.

    A kit, a folder with ``dataset.csv``, also gets splits where ``out`` has no ``splits/``: one
    fold leaves out each patient, or each slide where the manifest names fewer than two patients.
    ``var_50genes_fold<i>.json`` is chosen from the training slides of fold i; one list for all
    folds would have seen their test slides.

    Args:
        source: the folder.
        out: the data set folder to write.
        options: what the user says of the source.
        format: the source's kind, a name of ``platforms.detect.FORMATS``; None tells by its files.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        overwrite: write also what is there, but for ``splits/``.
        progress: called with the slide's name, the patches written and all its patches.
        report: called after every slide.
        notice: called with a line that says what was recognised, before a slide is cut.

    Raises:
        BadInput: the source is of no known kind, or its only slide is bad.
        SomeFailed: some slides are bad; the others are written, splits and gene lists are not.
    """
    out = Path(out)
    slides = find_slides(source, options, format)
    work = [
        (
            slide.name,
            partial(
                _prepare,
                slide,
                out,
                patch_px,
                patch_um,
                overwrite=overwrite,
                progress=progress,
                report=report,
                notice=notice,
            ),
        )
        for slide in slides
    ]
    done = attempt_each(work)
    if is_kit(Path(source)) and options.name is None:
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
        spots: spot table, see ``platforms.tables.read_spots``; None takes the places in ``counts``.
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
    source = tables_source(name, image, spots, counts, um_per_px)
    return _prepare(
        source,
        Path(out),
        patch_px,
        patch_um,
        overwrite=overwrite,
        progress=progress,
        report=report,
    )


def _prepare(
    source: SlideSource,
    out: Path,
    patch_px: int,
    patch_um: float,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Prepared], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare one slide, unless its files were made from the same inputs in the same way."""
    name = check_name(source.name, source.inputs["counts"], "id")
    patches, adata = out / "patches" / f"{name}.h5", out / "adata" / f"{name}.h5ad"
    asked: dict[str, Any] = {
        "slide": name,
        **{f"{role}_sha256": source.hash_input(file) for role, file in source.inputs.items()},
        **source.settings,
        "patch_px": patch_px,
        "patch_um": float(patch_um),
    }
    if source.um_per_px is not None:
        asked["um_per_px"] = float(source.um_per_px)
    before = None if overwrite else _complete_before(patches, adata, asked)
    record = before or cut_slide(source, patches, adata, asked, progress, notice)
    measured = {key: record[key] for key in _MEASURED}
    prepared = Prepared(name, patches, adata, **measured, complete_before=before is not None)
    if report is not None:
        report(prepared)
    return prepared


def _complete_before(patches: Path, adata: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the patch file's record if both files are there and were made as asked."""
    files = ((patches, patches_record), (adata, _adata_record))
    records = [made_before(file, read, asked) for file, read in files]
    return records[0] if all(record is not None for record in records) else None


def _adata_record(path: Path) -> dict[str, Any]:
    with open_h5(path) as file:
        try:
            return dict(json.loads(file[f"uns/{KEY}/provenance"][()]))
        except (KeyError, TypeError, ValueError):
            return {}


def _write_splits(folder: Path, slides: Sequence[SlideSource]) -> None:
    names, patients = ([getattr(s, key) for s in slides] for key in ("name", "patient"))
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
    folds = Dataset(out.resolve().name, out).folds()
    if not overwrite:
        folds = [fold for fold in folds if not (out / DEFAULT_RULE.file_name(fold.index)).exists()]
    try:
        write_gene_lists(folds, out, overwrite=overwrite)
    except BadInput as error:  # few spots, shallow counts: patches and counts are good all the same
        logger.warning("no gene list is written: %s", error)
