"""The record of a slide in memory: embeddings, positions and optional expression."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stflow_graph.data.normalise import to_target
from stflow_graph.data.stored_embeddings import Embeddings, StoredEmbeddings
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.atomic import check_name
from stflow_graph.io.coords import check_finite, check_spread
from stflow_graph.io.expression import Expression, expression_of, spatial, um_per_px_of
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.hdf5 import check_unique

if TYPE_CHECKING:
    from anndata import AnnData
    from torch_geometric.data import Data

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Slide:
    """One slide, spots in the order of its embedding file; compared by identity, so hashable.

    Attributes:
        name: the slide's name, unique in its data set.
        x: ``[N, F]`` float32 patch embeddings; F is 0 before the patches are embedded. Where
            they stay in their file every access reads them, see ``data.stored_embeddings``.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y).
        barcodes: N names.
        y: ``[N, G]`` float32 expression in log1p units, NaN in the columns of genes that the
            slide does not measure; None without expression.
        dataset: the data set's name, "" if none.
        um_per_px: micrometres per pixel, None if unknown.
        patch_um: edge of the area that a patch shows, µm, None if unknown.
        file: the file it was read from, for messages; "" for a slide in memory.
        encoder: the encoder of ``x``, "" if unknown.
        patches: a patch file, or ``[N, P, P, 3]`` uint8; None if there are none.
        stain: ``[3]`` shares of red, green and blue in the optical density of its patches, None if
            unknown.
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
    patch_um: float | None = None
    stain: np.ndarray | None = None

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

        If ``adata/<name>.h5ad`` exists, spots without counts are left out, with a warning.

        Args:
            root: a HEST-bench root, or a data set folder with ``patches/`` and ``adata/``.
            name: the slide's name.
            embed_dataroot: root of existing embeddings; None leaves ``x`` to ``embed``.
            encoder: the encoder of the embeddings.

        Raises:
            BadInput: no such slide, or files that cannot be used.
        """
        from stflow_graph.data.load import load_hest_slide  # which imports this module

        return load_hest_slide(Path(root), name, embed_dataroot, encoder)

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
        """Return the slide of an AnnData.

        Args:
            adata: spots with ``obsm["spatial"]`` in level-0 pixels and, to learn from or to
                score with, raw counts in ``X``. It is not changed.
            name: the slide's name, on which the noise of its samples depends; None takes
                ``uns["sample_id"]`` or the only library of ``uns["spatial"]``.
            embeddings: ``[N, F]``, or their name in ``obsm``; None leaves them to ``embed``.
            encoder: the encoder of the embeddings.
            patches: ``[N, P, P, 3]`` uint8 around the spots.

        Raises:
            BadInput: no name, no positions, or arrays that do not fit the spots.
        """
        name = check_name(_name_of(adata) if name is None else name, "AnnData", "name")
        origin = f"slide {name}"
        barcodes = list(adata.obs_names)
        check_unique(barcodes, origin, "obs_names")
        coords = spatial(adata, origin)
        if coords is None or not barcodes:
            found = list(adata.obsm) if barcodes else unquoted("0 spots")
            raise BadInput(origin, "obsm", found, "'spatial' of at least one spot")
        check_spread(coords, origin, "obsm['spatial']")
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
        return int(self._kept.shape[1])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings with their rows, as an embedding file does; here in one block."""
        yield slice(0, len(self)), self.x

    def with_(self, **changes: Any) -> Slide:
        """Return the slide with other fields; embeddings in their file stay there."""
        return dataclasses.replace(self, **{"x": self._kept, **changes})

    @property
    def _kept(self) -> np.ndarray | StoredEmbeddings:
        kept: np.ndarray | StoredEmbeddings = self.__dict__["_x"]
        return kept

    @property
    def is_stored(self) -> bool:
        """Whether the embeddings are read from their file at every access."""
        return isinstance(self._kept, StoredEmbeddings)

    def take(self, rows: np.ndarray) -> Slide:
        """Return the slide with these of its spots, in this order."""
        patches = self.patches
        kept = self._kept
        return self.with_(
            x=kept.take(rows) if isinstance(kept, StoredEmbeddings) else kept[rows],
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
        """Return the slide with ``y`` from the counts of ``adata``, for training.

        Args:
            genes: the genes of ``y`` in order.
            target: a target of ``data.normalise``.
            matching: how genes with other names in ``adata`` are matched.

        Raises:
            BadInput: no counts, counts that are not raw, or genes that are absent and not masked.
        """
        origin = self.file or self.name
        if self.adata is None:
            raise BadInput(origin, "adata", unquoted("no counts"), "raw counts of the spots")
        expression = expression_of(self.adata, origin, genes, matching=matching)
        y = target_of(expression, genes, target, self.name)
        return dataclasses.replace(self, y=y, adata=None, patches=None)

    def to_anndata(self) -> AnnData:
        """Return a copy of ``adata``, or spots without counts, with the slide's other fields.

        ``obsm["spatial"]`` are the positions and ``obsm["embeddings"]`` the embeddings, if any.
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


# set afterwards: in the class a dataclass would take it for a default
Slide.x = Embeddings()  # type: ignore[assignment]


def target_of(
    expression: Expression,
    genes: Sequence[str] | None,
    target: str,
    origin: str | Path,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Return the expression to learn, ``[N, G]`` float32, NaN for genes that are absent.

    A warning reports genes that were matched by other names, and how many are absent.

    Args:
        expression: counts of a slide.
        genes: the genes requested, in order; None for those of the expression.
        target: a target of ``data.normalise``.
        origin: the slide or its file, for messages.
        rows: rows of the spots to return; None for all.
    """
    if expression.matched:
        warn_once(f"{origin}: {expression.matched}")
    counts, total = expression.counts, expression.total
    if rows is not None:
        counts, total = counts[rows], total[rows]
    y = to_target(counts, total, target)
    if genes is None or not expression.absent:
        return y
    n_absent = len(expression.absent)
    warn_once(
        f"{origin}: {n_absent} of {count(len(genes), 'gene')} are not measured and are masked"
    )
    full, present = np.full((len(y), len(genes)), np.nan, dtype=np.float32), {*expression.genes}
    full[:, [gene in present for gene in genes]] = y  # both in the requested order
    return full


def _name_of(adata: AnnData) -> str:
    libraries = adata.uns.get("spatial")
    names = list(libraries) if isinstance(libraries, Mapping) else []
    name = adata.uns.get("sample_id", names[0] if len(names) == 1 else None)
    if not isinstance(name, str):
        raise BadInput("AnnData", "uns", list(adata.uns), "'sample_id'", "give name=")
    return name


def _checked_embeddings(x: np.ndarray, n: int, origin: str) -> np.ndarray:
    if x.ndim != 2 or len(x) != n or x.shape[1] == 0 or x.dtype.kind not in "fiu":
        raise BadInput(origin, "embeddings", unquoted(f"{x.shape} {x.dtype}"), f"({n}, F) numbers")
    x = x.astype(np.float32)
    check_finite(x, origin, "embeddings", n)
    return x


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning the first time: a slide is read in every fold that trains on it."""
    logger.warning(text)
