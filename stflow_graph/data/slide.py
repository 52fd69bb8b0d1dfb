"""A slide in memory: embeddings, positions and, where known, expression, matched by barcode."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stflow_graph.data.normalise import to_target
from stflow_graph.data.places import patch_centres, to_centres
from stflow_graph.data.splits import Sample, find_embedding
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.expression import (
    expression_of,
    read_expression,
    read_h5ad,
    spatial,
    um_per_px_of,
)
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.hdf5 import check_unique
from stflow_graph.io.patches import open_patches

if TYPE_CHECKING:
    from anndata import AnnData
    from torch_geometric.data import Data

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Slide:
    """One slide, spots in the order of its embedding file; compared by identity, so hashable.

    Attributes:
        name: the slide's name, unique in its data set.
        x: ``[N, F]`` float32 patch embeddings; F is 0 before the patches are embedded.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y).
        barcodes: N names.
        y: ``[N, G]`` float32 expression in log1p units, None when only embeddings are known.
        dataset: the data set's name, "" if none.
        um_per_px: micrometres per pixel, None if unknown.
        file: the file it was read from, for messages; "" if made in memory.
        encoder: who made ``x``, "" if unknown.
        patches: a patch file, or ``[N, P, P, 3]`` uint8; None if there are none.
        adata: the same N spots with raw counts in ``X``, all genes; None if not measured.
    """

    name: str
    x: np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    y: np.ndarray | None = None
    dataset: str = ""
    um_per_px: float | None = None
    file: str = ""
    encoder: str = ""
    patches: Path | np.ndarray | None = None
    adata: AnnData | None = None

    @classmethod
    def from_hest(
        cls,
        root: str | Path,
        name: str,
        *,
        embed_dataroot: str | Path | None = None,
        encoder: str = "efficientnet_lite0",
    ) -> Slide:
        """Read a slide's patches, or its embeddings, and its counts in HEST-bench's layout.

        Where ``adata/<name>.h5ad`` is there, spots without counts are left out, with a warning.

        Args:
            root: a HEST-bench root, or a data set folder with ``patches/`` and ``adata/``.
            name: the slide's.
            embed_dataroot: root of embeddings that are there; None leaves ``x`` to ``embed``.
            encoder: who made these.

        Raises:
            BadInput: no such slide, or files that cannot be used.
        """
        folder = _hest_folder(Path(root), check_name(name, root))
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
        check_unique(list(adata.obs_names), expr_file, "obs_names")
        names, centres = list(adata.obs_names), spatial(adata, expr_file)
        slide, places = _joined(slide, names, centres, expr_file, {})
        um_per_px = slide.um_per_px or um_per_px_of(adata)
        return dataclasses.replace(slide, adata=adata[places].copy(), um_per_px=um_per_px)

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        name: str | None = None,
        embeddings: np.ndarray | str | None = None,
        encoder: str = "",
        patches: np.ndarray | None = None,
    ) -> Slide:
        """Return a slide of spots that are in memory.

        Args:
            adata: spots with ``obsm["spatial"]`` in level-0 pixels and, to learn from or to
                score with, raw counts in ``X``. It is not changed.
            name: the slide's, which the noise of its samples depends on; None takes
                ``uns["sample_id"]`` or the only library of ``uns["spatial"]``.
            embeddings: ``[N, F]``, or their name in ``obsm``; None leaves them to ``embed``.
            encoder: who made them.
            patches: ``[N, P, P, 3]`` uint8 around the spots.

        Raises:
            BadInput: no name, no places, or arrays that do not fit the spots.
        """
        name = check_name(_name_of(adata) if name is None else name, "AnnData", "name")
        origin = f"slide {name}"
        barcodes = list(adata.obs_names)
        check_unique(barcodes, origin, "obs_names")
        coords = spatial(adata, origin)
        if coords is None or not barcodes:
            found = list(adata.obsm) if barcodes else unquoted("0 spots")
            raise BadInput(origin, "obsm", found, "'spatial' of at least one spot")
        if isinstance(embeddings, str):
            if embeddings not in adata.obsm:
                raise BadInput(origin, "obsm", list(adata.obsm), repr(embeddings))
            embeddings = np.asarray(adata.obsm[embeddings])
        x = np.empty((len(barcodes), 0), np.float32)
        if embeddings is not None:
            x = _checked_embeddings(embeddings, len(barcodes), origin)
        if patches is not None and len(patches) != len(barcodes):
            raise BadInput(origin, "patches", patches.shape, f"({len(barcodes)}, P, P, 3)")
        return cls(
            name,
            x,
            coords,
            barcodes,
            um_per_px=um_per_px_of(adata),
            file=origin,
            encoder=encoder,
            patches=patches,
            adata=adata,
        )

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def width(self) -> int:
        """F, channels of an embedding."""
        return int(self.x.shape[1])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Give the embeddings with their rows, as an embedding file does; here in one block."""
        yield slice(0, len(self)), self.x

    def take(self, rows: np.ndarray) -> Slide:
        """Return the slide with these of its spots, in this order."""
        patches = self.patches
        return dataclasses.replace(
            self,
            x=self.x[rows],
            coords=self.coords[rows],
            barcodes=[self.barcodes[i] for i in rows],
            y=None if self.y is None else self.y[rows],
            patches=patches[rows] if isinstance(patches, np.ndarray) else patches,
            adata=None if self.adata is None else self.adata[rows].copy(),
        )

    def with_target(
        self,
        genes: Sequence[str],
        target: str = "log1p",
        matching: GeneMatching = DEFAULT_MATCHING,
    ) -> Slide:
        """Return what a denoiser learns from: embeddings, and ``y`` from the counts of ``adata``.

        Args:
            genes: the genes of ``y`` in order.
            target: what ``y`` is, see ``data.normalise``.
            matching: how genes are found that ``adata`` names otherwise.

        Raises:
            BadInput: no counts, counts that are not raw, or genes that are absent.
        """
        if self.adata is None:
            found = unquoted("no counts")
            raise BadInput(self.file or self.name, "adata", found, "raw counts of the spots")
        counts = expression_of(self.adata, self.file or self.name, genes, matching=matching)
        if counts.matched:
            _say_once(f"{self.name}: {counts.matched}")
        y = to_target(counts.counts, counts.total, target)
        return dataclasses.replace(self, y=y, adata=None, patches=None)

    def to_anndata(self) -> AnnData:
        """Return a copy of ``adata``, or spots without counts, with all that is known of them.

        ``obsm["spatial"]`` are the places and ``obsm["embeddings"]`` the embeddings, if any.
        """
        import anndata
        import pandas as pd

        adata = self.adata
        if adata is None:
            adata = anndata.AnnData(obs=pd.DataFrame(index=pd.Index(self.barcodes, dtype=object)))
        else:
            adata = adata.copy()
        adata.obsm["spatial"] = self.coords
        adata.uns["sample_id"] = self.name
        if self.width:
            adata.obsm["embeddings"] = self.x
        if self.um_per_px is not None:
            adata.uns["um_per_px"] = self.um_per_px
        return adata

    @property
    def truth(self) -> np.ndarray:
        """The expression ``y``; a slide read without it raises ``ValueError``."""
        if self.y is None:
            raise ValueError(f"slide {self.name} was read without its expression")
        return self.y

    def to_data(self) -> Data:
        """Return a PyG ``Data`` with ``x [N,F]``, ``pos [N,2]`` (float64, pixels) and ``y``."""
        import torch
        from torch_geometric.data import Data

        data = Data(x=torch.from_numpy(self.x), pos=torch.from_numpy(self.coords))
        if self.y is not None:
            data.y = torch.from_numpy(self.y)
        return data


def load_slide(
    embedding_file: str | Path,
    expr_file: str | Path | None = None,
    genes: Sequence[str] | None = None,
    *,
    target: str = "log1p",
    name: str | None = None,
    dataset: str = "",
    matching: GeneMatching = DEFAULT_MATCHING,
) -> Slide:
    """Read a slide's embeddings and, where given, its expression, joined by barcode.

    Coordinates that turn out to be corners of patches become centres, see ``data.places``.

    Args:
        embedding_file: embeddings .h5.
        expr_file: expression .h5ad with raw counts; None leaves ``y`` out.
        genes: the genes of ``y`` in order; None takes all.
        target: what ``y`` is, see ``data.normalise``.
        name: the slide's name; the embedding file's stem if None.
        dataset: the data set's name.
        matching: how genes are found that the file names otherwise.

    Raises:
        BadInput: a file is bad, a gene is absent, or under half of the smaller file's barcodes are
            in the other.
    """
    with open_embeddings(embedding_file) as source:
        slide, attrs = slide_of(source, name, dataset), source.attrs
    if expr_file is None:
        return slide
    expression = read_expression(expr_file, genes, matching=matching)
    if expression.matched:
        _say_once(f"{expr_file}: {expression.matched}")
    slide, places = _joined(slide, expression.barcodes, expression.coords, expr_file, attrs)
    y = to_target(expression.counts[places], expression.total[places], target)
    return dataclasses.replace(slide, y=y, um_per_px=slide.um_per_px or expression.um_per_px)


def _joined(
    slide: Slide,
    barcodes: Sequence[str],
    centres: np.ndarray | None,
    expr_file: str | Path,
    attrs: Mapping[str, Any],
) -> tuple[Slide, np.ndarray]:
    """Return the slide's spots that have expression, placed by their centres, and their rows there.

    Args:
        slide: with embeddings or patches.
        barcodes: of the expression.
        centres: ``[N, 2]`` where the expression has its spots, None if it does not say.
        expr_file: where these are from, for messages.
        attrs: of the embedding file.
    """
    rows, places = match_barcodes(slide.barcodes, barcodes, slide.file, expr_file)
    if len(rows) < len(slide):
        logger.warning(
            "%s: %d of %d spots have no expression in %s and are left out",
            slide.file,
            len(slide) - len(rows),
            len(slide),
            expr_file,
        )
        slide = slide.take(rows)
    if centres is None:
        return slide, places
    placed = to_centres(
        slide.coords,
        centres[places],
        file=slide.file,
        other=expr_file,
        size=_number(attrs, "patch_size_level0"),
        stated=attrs.get("convention"),
    )
    return dataclasses.replace(slide, coords=placed.coords), places


def _hest_folder(root: Path, name: str) -> Path:
    """Return the data set folder that has a slide: the root itself or one below it."""
    parts = (f"patches/{name}.h5", f"adata/{name}.h5ad")
    below = sorted(folder for folder in root.glob("*") if folder.is_dir())
    found = [each for each in (root, *below) if any((each / part).is_file() for part in parts)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInput(root, "slide", unquoted(f"no {parts[0]}"), f"files of slide {name}")
    shown = unquoted(f"{name} in {[folder.name for folder in found[:3]]}")
    raise BadInput(root, "slide", shown, "one slide", "give the data set's folder as the root")


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
        )


def _name_of(adata: AnnData) -> str:
    libraries = adata.uns.get("spatial")
    known = list(libraries) if isinstance(libraries, Mapping) else []
    name = adata.uns.get("sample_id", known[0] if len(known) == 1 else None)
    if not isinstance(name, str):
        raise BadInput("AnnData", "uns", list(adata.uns), "'sample_id'", "give name=")
    return name


def _checked_embeddings(x: np.ndarray, n: int, origin: str) -> np.ndarray:
    if x.ndim != 2 or len(x) != n or x.shape[1] == 0 or x.dtype.kind not in "fiu":
        raise BadInput(origin, "embeddings", unquoted(f"{x.shape} {x.dtype}"), f"({n}, F) numbers")
    x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        found = unquoted(f"{len(bad)} of {n} rows not finite, first rows {bad[:3].tolist()}")
        raise BadInput(origin, "embeddings", found, "finite numbers")
    return x


@functools.cache
def _say_once(text: str) -> None:
    # a slide is read in every fold that trains on it
    logger.warning(text)


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
    )


def um_per_px(attrs: Mapping[str, Any]) -> float | None:
    """Return the micrometres per pixel that an embedding file's attributes tell, or None."""
    return _number(attrs, "um_per_px")


def _number(attrs: Mapping[str, Any], key: str) -> float | None:
    value = attrs.get(key)
    return float(value) if isinstance(value, int | float) else None


def load_sample(
    sample: Sample,
    embed_root: str | Path,
    encoder: str,
    genes: Sequence[str],
    target: str = "log1p",
    matching: GeneMatching = DEFAULT_MATCHING,
) -> Slide:
    """Read a slide of a split with its expression; see :func:`load_slide`."""
    return load_slide(
        find_embedding(embed_root, sample.dataset, encoder, sample.id),
        sample.expr_path,
        genes,
        target=target,
        name=sample.id,
        dataset=sample.dataset,
        matching=matching,
    )


def check_one_width(slides: Sequence[Slide], embed_root: str | Path) -> None:
    """Refuse slides whose embeddings have different numbers of channels.

    Raises:
        BadInput: they have; names ``embed_root``.
    """
    widths = {slide.x.shape[1] for slide in slides}
    if len(widths) > 1:
        found = unquoted(f"widths {sorted(widths)}")
        raise BadInput(embed_root, "embeddings", found, "one width")


def match_barcodes(
    left: Sequence[str], right: Sequence[str], left_file: str | Path, right_file: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of ``left`` that are in ``right``, and their rows in ``right``.

    Raises:
        BadInput: under half of the smaller side matches; says how many and shows three.
    """
    place = {barcode: i for i, barcode in enumerate(right)}
    rows = np.array([i for i, b in enumerate(left) if b in place], dtype=np.int64)
    if 2 * len(rows) < min(len(left), len(right)):
        missing = [b for b in left if b not in place]
        found = unquoted(
            f"{len(rows)} of {len(left)} barcodes in {Path(right_file).name}; "
            f"not there: {missing[:3]}, there: {list(right[:3])}"
        )
        fix = "check that both files are of one slide and that suffixes such as '-1' agree"
        raise BadInput(left_file, "barcodes", found, "the same barcodes in both", fix)
    return rows, np.array([place[left[i]] for i in rows], dtype=np.int64)


__all__ = [
    "Slide",
    "check_one_width",
    "load_sample",
    "load_slide",
    "match_barcodes",
    "slide_of",
    "um_per_px",
]
