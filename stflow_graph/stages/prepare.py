"""The prepare stage: H&E images, spot tables and counts to patches and expression files.

It writes a data set in HEST-bench's layout: ``patches/<slide>.h5``, ``adata/<slide>.h5ad`` and, of
a kit, ``splits/`` and a gene list for every fold.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stflow_graph.data.splits import Dataset, split_files, write_splits
from stflow_graph.errors import BadInput, attempt_each
from stflow_graph.images.open import check_image
from stflow_graph.images.scale import check_no_contradiction
from stflow_graph.io.atomic import check_name
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.versions import unchanged
from stflow_graph.platforms.detect import find_slides
from stflow_graph.platforms.kit import is_kit
from stflow_graph.platforms.source import NO_OPTIONS, SlideSource, SourceOptions
from stflow_graph.preparation.cut_patches import Progress, check_scale
from stflow_graph.preparation.cut_slide import cut_slide, slide_record
from stflow_graph.preparation.gene_lists import DEFAULT_RULE, write_gene_lists
from stflow_graph.preparation.places import MAX_OUTSIDE

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The outputs of one slide.

    Attributes:
        slide: its name.
        patches: the patch file.
        adata: the expression file.
        n_spots: spots in both.
        not_selected: spots left out because the spot table, or the patch file that the slide came
            with, does not select them.
        only_in_spots: spots left out because they have no counts.
        only_in_counts: spots left out because they have no position.
        n_padded: patches that reach over the image's edge, where they are white.
        pitch_um: distance of neighbouring spots, ``io.coords.array_pitch``, µm; NaN for a lone
            spot. A wrong scale shows here.
        um_per_px: micrometres per pixel of the image.
        outside: spots left out because they lie outside the image.
        up_to_date: both files existed, made from the same inputs; nothing was done.
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
    outside: int = 0
    up_to_date: bool = False


def prepare(
    source: str | Path | SlideSource,
    out: str | Path,
    options: SourceOptions = NO_OPTIONS,
    *,
    format: str | None = None,
    patch_px: int = 224,
    patch_um: float = 112.0,
    max_outside: float = MAX_OUTSIDE,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Prepared], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Prepared]:
    """Cut a patch around every spot that has counts; write the patches and the counts.

    Spots are in the order of the slide's spot table. A kit, a folder with ``dataset.csv``, also
    gets splits where ``out`` has no ``splits/``: each fold holds out one patient, or one slide
    where the manifest names fewer than two patients. ``var_50genes_fold<i>.json`` is chosen from
    the training slides of fold i; one list for all folds would have seen their test slides.

    Args:
        source: a folder of any platform, see ``platforms.detect.find_slides``, or one slide, see
            ``platforms.source.tables_source``.
        out: the data set folder to write.
        options: the user's options for the folder.
        format: the folder's kind, a name of ``platforms.detect.FORMATS``; None detects it.
        patch_px: edge of a stored patch, px.
        patch_um: edge of the area that a patch shows, µm.
        max_outside: of the spots, the share that may lie outside the image and is left out.
        overwrite: replace existing outputs, except ``splits/``.
        progress: called with the slide's name, the patches written and all its patches.
        report: called after every slide.
        notice: called with a line on what was recognised, before a slide is cut.

    Raises:
        BadInput: the source is of no known kind, or the only slide cannot be used: a bad input,
            spots outside the image, or existing outputs that were made in another way.
        SomeFailed: some slides are bad; the others are written, splits and gene lists are not.
    """
    out, from_kit = check_output_folder(out), False
    if isinstance(source, SlideSource):
        slides = [source]
    else:
        slides = find_slides(source, options, format)
        from_kit = is_kit(Path(source)) and options.name is None

    def run(slide: SlideSource) -> Prepared:
        request = {"patch_px": patch_px, "patch_um": float(patch_um)}
        cut = partial(cut_slide, slide, progress=progress, notice=notice, max_outside=max_outside)
        prepared = _prepare(slide, out, request, overwrite, cut)
        if report is not None:
            report(prepared)
        return prepared

    prepared = attempt_each([(slide.name, partial(run, slide)) for slide in slides])
    if from_kit:
        if not (out / "splits").exists():
            _write_splits(out / "splits", slides)
        if (out / "splits").exists():
            _write_gene_lists(out, overwrite)
    return prepared


def _prepare(
    source: SlideSource,
    out: Path,
    request: dict[str, Any],
    overwrite: bool,
    cut: Callable[..., dict[str, Any]],
) -> Prepared:
    """Prepare one slide, unless its files were made from the same inputs in the same way.

    Args:
        source: the slide.
        out: the data set folder.
        request: what its files must be made with, besides the source's own settings.
        overwrite: replace files that were made in another way.
        cut: writes its files, see :func:`cut_slide`.
    """
    name = check_name(source.name, source.inputs["counts"], "id")
    patches, adata = out / "patches" / f"{name}.h5", out / "adata" / f"{name}.h5ad"
    with unchanged(*source.inputs.values()) as versions:
        _check_image(source, request["patch_um"])
        hashes = {f"{r}_sha256": source.hash_input(file) for r, file in source.inputs.items()}
        request = {"slide": name, **hashes, **source.settings, **request}
        if source.um_per_px is not None:
            request["um_per_px"] = float(source.um_per_px)
        stored = None if overwrite else slide_record(patches, adata, request)
        record = stored or cut(patches, adata, request, check=versions.check)
    measured = {f.name: record[f.name] for f in dataclasses.fields(Prepared) if f.name in record}
    return Prepared(patches=patches, adata=adata, **measured, up_to_date=stored is not None)


def _check_image(source: SlideSource, patch_um: float) -> None:
    """Refuse an image that cannot be used before it is hashed, which takes minutes if it is large.

    Patches that are there already need none.

    Raises:
        BadInput: it is missing, cannot be opened, or no file has its scale.
    """
    if source.open_image is not None or "patches" in source.inputs:
        return
    own = check_image(source.image_input())
    if not source.platform and source.inputs["counts"].suffix != ".h5ad":
        image, given = source.image_file, source.um_per_px
        check_no_contradiction(image, given, own, own)
        check_scale(own if given is None else given, patch_um, image)


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
            "`train` needs --allow-patient-overlap for it",
            folder,
            patients[0],
        )
    write_splits(folder, split_files(names, [held_out.index(g) for g in groups], patients))


def _write_gene_lists(out: Path, overwrite: bool) -> None:
    folds = Dataset(out.resolve().name, out).folds()
    if not overwrite:
        folds = [fold for fold in folds if not (out / DEFAULT_RULE.file_name(fold)).exists()]
    try:
        write_gene_lists(folds, out, overwrite=overwrite)
    except BadInput as error:  # few spots, shallow counts: patches and counts are good all the same
        logger.warning("no gene list is written: %s", error)
