"""A slide in memory: embeddings, positions and, where known, expression, matched by barcode."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stflow_graph.data.normalise import to_target
from stflow_graph.data.places import to_centres
from stflow_graph.data.splits import Sample, find_embedding
from stflow_graph.errors import BadInput, plain
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.io.expression import read_expression
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching

if TYPE_CHECKING:
    from torch_geometric.data import Data

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Slide:
    """One slide, spots in the order of its embedding file.

    Attributes:
        name: the slide's name, unique in its data set.
        x: ``[N, F]`` float32 patch embeddings.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y).
        barcodes: N names.
        y: ``[N, G]`` float32 expression in log1p units, None when only embeddings are known.
        dataset: the data set's name, "" if none.
        um_per_px: micrometres per pixel, None if unknown.
        file: the embedding file it was read from, for messages; "" if made in memory.
    """

    name: str
    x: np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    y: np.ndarray | None = None
    dataset: str = ""
    um_per_px: float | None = None
    file: str = ""

    def __len__(self) -> int:
        return len(self.barcodes)

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
    rows, places = match_barcodes(slide.barcodes, expression.barcodes, embedding_file, expr_file)
    if len(rows) < len(slide):
        logger.warning(
            "%s: %d of %d spots have no expression in %s and are left out",
            embedding_file,
            len(slide) - len(rows),
            len(slide),
            expr_file,
        )
    y = to_target(expression.counts[places], expression.total[places], target)
    coords = slide.coords[rows]
    if expression.coords is not None:
        coords = to_centres(
            coords,
            expression.coords[places],
            file=embedding_file,
            other=expr_file,
            size=_number(attrs, "patch_size_level0"),
            stated=attrs.get("convention"),
        ).coords
    return dataclasses.replace(
        slide,
        x=slide.x[rows],
        coords=coords,
        barcodes=[slide.barcodes[i] for i in rows],
        y=y,
        um_per_px=slide.um_per_px or expression.um_per_px,
    )


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
        found = plain(f"widths {sorted(widths)}")
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
        found = plain(
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
