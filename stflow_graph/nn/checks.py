"""What a denoiser refuses: shapes, dtypes and indices that do not fit, each printed."""

from __future__ import annotations

import torch
from torch import Tensor


def check_spots(
    y_t: Tensor, t: Tensor, x: Tensor, batch: Tensor | None, in_channels: int, n_genes: int
) -> None:
    """Check the tensors that have a row a spot.

    Args:
        y_t: must be ``[N, G]`` floating point.
        t: must be ``[n_slides]`` floating point.
        x: must be ``[N, F]`` floating point.
        batch: must be ``[N]`` int64 with values below ``n_slides``; None is one slide.
        in_channels: F.
        n_genes: G.

    Raises:
        ValueError: the first that does not fit, with its shape and dtype.
    """
    if torch.compiler.is_compiling():  # values are not known while a graph is traced
        return
    n = x.size(0) if x.dim() else 0
    _check_rows("data.x", x, (n, in_channels))
    _check_rows("y_t", y_t, (n, n_genes))
    if batch is None:
        if tuple(t.shape) != (1,) or not t.is_floating_point():
            found = f"{list(t.shape)} {t.dtype}"
            raise ValueError(
                f"t must be [1] of floats (data without batch is 1 slide), got {found}"
            )
        return
    if tuple(batch.shape) != (n,) or batch.dtype != torch.int64:
        raise ValueError(f"data.batch must be [{n}] int64, got {list(batch.shape)} {batch.dtype}")
    slides = f", with an entry for each slide of data.batch [{n}]"
    if t.dim() != 1 or not t.is_floating_point():
        raise ValueError(f"t must be [n_slides] of floats{slides}, got {list(t.shape)} {t.dtype}")
    if n and not 0 <= int(batch.min()) <= int(batch.max()) < t.size(0):
        found = f"{list(t.shape)} for slides {int(batch.min())} to {int(batch.max())}"
        raise ValueError(f"t must be [n_slides]{slides}, got {found}")


def check_positions(pos: Tensor | None, n_spots: int) -> None:
    """Check that positions are there, ``[N, 2]`` and finite.

    Raises:
        ValueError: they are not.
    """
    if torch.compiler.is_compiling():  # values are not known while a graph is traced
        return
    if pos is None:
        raise ValueError(f"data.pos [{n_spots}, 2] is needed")
    if tuple(pos.shape) != (n_spots, 2):
        raise ValueError(f"data.pos must be [{n_spots}, 2], got {list(pos.shape)}")
    lost = int((~pos.isfinite()).any(dim=1).sum())
    if lost:
        raise ValueError(f"data.pos [{n_spots}, 2] has {lost} rows that are not finite")


def check_edges(edge_index: Tensor | None, batch: Tensor, name: str = "data.edge_index") -> None:
    """Check that edges name spots, and join spots of one slide.

    Args:
        edge_index: must be ``[2, E]`` int64; a sparse matrix is left to PyG.
        batch: ``[N]`` slide of each spot.
        name: what to call the edges.

    Raises:
        ValueError: they do not.
    """
    if torch.compiler.is_compiling():  # values are not known while a graph is traced
        return
    if edge_index is None:
        raise ValueError(f"{name} is needed: put the slide through graph.SpatialGraph")
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        return
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"{name} must be [2, E] int64, got {list(edge_index.shape)} {edge_index.dtype}"
        )
    if not edge_index.numel():
        return
    n, low, high = batch.size(0), int(edge_index.min()), int(edge_index.max())
    if not 0 <= low <= high < n:
        raise ValueError(
            f"{name} {list(edge_index.shape)} must name spots 0 to {n - 1}, got {low} to {high}"
        )
    crossing = int((batch[edge_index[0]] != batch[edge_index[1]]).sum())
    if crossing:
        raise ValueError(f"{name} {list(edge_index.shape)} has {crossing} edges between slides")


def _check_rows(name: str, value: Tensor, shape: tuple[int, int]) -> None:
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise ValueError(
            f"{name} must be {list(shape)} of floats, got {list(value.shape)} {value.dtype}"
        )
