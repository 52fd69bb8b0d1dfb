"""Reading slides: embeddings or patches, and expression, joined by barcode."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.data.barcodes import match_barcodes
from stflow_graph.data.coordinates import patch_centres, to_centres
from stflow_graph.data.slide import Slide, target_of
from stflow_graph.data.splits import Sample, find_embedding
from stflow_graph.data.stored_embeddings import StoredEmbeddings
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.expression import read_expression, spatial, um_per_px_of
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.hdf5 import check_unique
from stflow_graph.io.patches import open_patches
from stflow_graph.io.versions import Versions

logger = logging.getLogger(__name__)

_SAME_SIZE = 0.1  # relative difference of patches' physical sizes


def load_slide(
    embedding_file: str | Path,
    expr_file: str | Path | None = None,
    genes: Sequence[str] | None = None,
    *,
    target: str = "log1p",
    name: str | None = None,
    dataset: str = "",
    matching: GeneMatching = DEFAULT_MATCHING,
    min_embedded: float = 0.0,
    in_memory: bool = True,
) -> Slide:
    """Read a slide's embeddings and, optionally, its expression, joined by barcode.

    Coordinates that are corners of patches become centres, see ``data.coordinates``.

    Args:
        embedding_file: embeddings .h5.
        expr_file: expression .h5ad with raw counts; None leaves ``y`` out.
        genes: the genes of ``y`` in order; None takes all.
        target: a target of ``data.normalise``.
        name: the slide's name; the embedding file's stem if None.
        dataset: the data set's name.
        matching: how genes with other names in the file are matched, and whether genes that it
            lacks are masked: NaN in ``y``.
        min_embedded: of the measured spots, the share that must have embeddings.
        in_memory: keep the embeddings; otherwise they are checked, and read again as needed.

    Raises:
        BadInput: a file is bad, a gene is absent and not masked, under half of the smaller
            file's barcodes are in the other, or too few measured spots have embeddings.
    """
    version = Versions(embedding_file)
    with open_embeddings(embedding_file) as source:
        slide, attrs = slide_of(source, name, dataset), source.attrs
    if not in_memory:
        stored = StoredEmbeddings(Path(embedding_file), slide.x.shape, version)
        slide = slide.with_(x=stored)
    if expr_file is None:
        return slide
    expression = read_expression(expr_file, genes, matching=matching)
    slide, rows = _join(slide, expression.barcodes, expression.coords, expr_file, attrs)
    n_measured = len(expression.barcodes)
    if len(rows) < min_embedded * n_measured:
        found = unquoted(f"{len(rows)} of {n_measured} measured spots in {slide.file}")
        fix = "embed the others, or give --allow-missing-spots"
        raise BadInput(expr_file, "embeddings", found, f"at least {min_embedded:.0%}", fix)
    y = target_of(expression, genes, target, expr_file, rows)
    return slide.with_(y=y, um_per_px=slide.um_per_px or expression.um_per_px)


def load_sample(
    sample: Sample,
    embed_root: str | Path,
    encoder: str,
    genes: Sequence[str],
    target: str = "log1p",
    matching: GeneMatching = DEFAULT_MATCHING,
    min_embedded: float = 0.0,
    in_memory: bool = True,
) -> Slide:
    """Read a slide of a split with its expression; see :func:`load_slide`.

    Raises:
        BadInput: also if the embeddings are those of another encoder.
    """
    file = find_embedding(embed_root, sample.dataset, encoder, sample.id)
    slide = load_slide(
        file,
        sample.expr_path,
        genes,
        target=target,
        name=sample.id,
        dataset=sample.dataset,
        matching=matching,
        min_embedded=min_embedded,
        in_memory=in_memory,
    )
    if slide.encoder not in ("", encoder):
        fix = f"give --encoder {slide.encoder}, or another --embed-dataroot"
        raise BadInput(file, "encoder", slide.encoder, repr(encoder), fix)
    return slide


def load_hest_slide(
    root: Path, name: str, embed_dataroot: str | Path | None, encoder: str
) -> Slide:
    """Read a slide in HEST-bench's layout; see ``Slide.from_hest``."""
    folder = _hest_folder(root, check_name(name, root))
    patches, expr_file = folder / "patches" / f"{name}.h5", folder / "adata" / f"{name}.h5ad"
    dataset = folder.resolve().name
    if embed_dataroot is None:
        slide = _unembedded(patches, name, dataset)
    else:
        file = find_embedding(embed_dataroot, dataset, encoder, name)
        slide = load_slide(file, name=name, dataset=dataset)
    if not expr_file.is_file():
        return slide
    adata = read_h5ad(expr_file)
    names, centres = list(adata.obs_names), spatial(adata, expr_file)
    check_unique(names, expr_file, "obs_names")
    slide, rows = _join(slide, names, centres, expr_file, {})
    um_per_px = slide.um_per_px or um_per_px_of(adata)
    return dataclasses.replace(slide, adata=adata[rows].copy(), um_per_px=um_per_px)


def slide_of(source: EmbeddingFile, name: str | None = None, dataset: str = "") -> Slide:
    """Read a slide from its open embedding file; the name is the file's stem if None."""
    return Slide(
        name or source.path.stem,
        source.read(),
        source.coords,
        source.barcodes,
        dataset=dataset,
        um_per_px=um_per_px(source.attrs),
        file=str(source.path),
        encoder=source.encoder or "",
        patch_um=patch_um(source.attrs),
        stain=stain_of(source.attrs),
    )


def stain_of(attrs: Mapping[str, Any]) -> np.ndarray | None:
    """Return the stain in an embedding file's attributes, see ``images.stain``, or None."""
    try:
        stain = np.asarray(attrs.get("stain"), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return stain if stain.shape == (3,) and np.isfinite(stain).all() else None


def patch_um(attrs: Mapping[str, Any]) -> float | None:
    """Return the edge of the area that a patch shows, µm, by an embedding file's attributes."""
    edge, scale = _number(attrs, "patch_size_level0"), um_per_px(attrs)
    return None if edge is None or scale is None else edge * scale


def um_per_px(attrs: Mapping[str, Any]) -> float | None:
    """Return the micrometres per pixel in an embedding file's attributes, or None."""
    return _number(attrs, "um_per_px")


def _number(attrs: Mapping[str, Any], key: str) -> float | None:
    """Return an attribute that can be a length, else None."""
    value = attrs.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < np.inf else None


def check_one_patch_size(slides: Sequence[Slide]) -> None:
    """Refuse patches of different physical sizes, where these are known.

    Raises:
        BadInput: they differ by more than a tenth.
    """
    sizes = {slide: slide.patch_um for slide in slides if slide.patch_um is not None}
    for slide, size in sizes.items():
        first = next(iter(sizes.values()))
        if not same_patch_size(size, first):
            expected = f"{first:.4g} µm as of {next(iter(sizes)).name}"
            fix = "embed patches of one size, or give --allow-patch-size"
            raise BadInput(slide.file, "patches", unquoted(f"{size:.4g} µm"), expected, fix)


def same_patch_size(one: float | None, other: float | None) -> bool:
    """Return whether two physical sizes of patches are the same within a tenth, or unknown."""
    return one is None or other is None or abs(one / other - 1) <= _SAME_SIZE


def check_one_width(slides: Sequence[Slide], embed_root: str | Path) -> None:
    """Raise BadInput, naming ``embed_root``, for embeddings of different widths."""
    widths = {slide.x.shape[1] for slide in slides}
    if len(widths) > 1:
        found = unquoted(f"widths {sorted(widths)}")
        raise BadInput(embed_root, "embeddings", found, "one width")


def _join(
    slide: Slide,
    barcodes: Sequence[str],
    centres: np.ndarray | None,
    expr_file: str | Path,
    attrs: Mapping[str, Any],
) -> tuple[Slide, np.ndarray]:
    """Return the slide's spots with expression, at their centres, and their rows of expression.

    Args:
        slide: with embeddings or patches.
        barcodes: of the expression.
        centres: ``[N, 2]`` positions of the expression, None if it has none.
        expr_file: the file of the expression, for messages.
        attrs: of the embedding file.
    """
    rows, expr_rows = match_barcodes(slide.barcodes, barcodes, slide.file, expr_file)
    if len(rows) < len(slide):
        logger.warning(
            "%s: %d of %d spots have no expression in %s and are left out",
            slide.file,
            len(slide) - len(rows),
            len(slide),
            expr_file,
        )
        slide = slide.take(rows)
    if n_absent := len(barcodes) - len(rows):
        logger.warning(
            "%s: %d of %d measured spots (%.0f%%) have no embeddings in %s and are left out",
            *(expr_file, n_absent, len(barcodes), 100 * n_absent / len(barcodes), slide.file),
        )
    if centres is None:
        return slide, expr_rows
    placed = to_centres(
        slide.coords,
        centres[expr_rows],
        file=slide.file,
        other=expr_file,
        size=_number(attrs, "patch_size_level0"),
        stated=attrs.get("convention"),
    )
    return slide.with_(coords=placed.coords), expr_rows


def _hest_folder(root: Path, name: str) -> Path:
    """Return the data set folder of a slide: the root itself or one below it."""
    parts = (f"patches/{name}.h5", f"adata/{name}.h5ad")
    folders = [root, *sorted(folder for folder in root.glob("*") if folder.is_dir())]
    folders = [folder for folder in folders if any((folder / part).is_file() for part in parts)]
    if not folders:
        raise BadInput(root, "slide", unquoted(f"no {parts[0]}"), f"files of slide {name}")
    if len(folders) > 1:
        found = unquoted(f"{name} in {[folder.name for folder in folders[:3]]}")
        raise BadInput(root, "slide", found, "one slide", "give the data set's folder as the root")
    return folders[0]


def _unembedded(file: Path, name: str, dataset: str) -> Slide:
    with open_patches(file) as patches:
        return Slide(
            name,
            np.empty((len(patches), 0), np.float32),
            np.rint(patch_centres(patches).coords),  # as embedding files keep them
            patches.barcodes,
            dataset=dataset,
            um_per_px=patches.um_per_px,
            file=str(file),
            patches=file,
            patch_um=patch_um(
                {"patch_size_level0": patches.size_level0, "um_per_px": patches.um_per_px}
            ),
        )
