"""Input validation for networks, with shapes in the error message."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.graph.whole import slide_of_spots


def check_spots(
    y_t: Tensor, t: Tensor, x: Tensor, batch: Tensor | None, in_channels: int, n_genes: int
) -> None:
    """Check the tensors that have one row per spot.

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
    check_rows("data.x", x, (n, in_channels))
    check_rows("y_t", y_t, (n, n_genes))
    if batch is None:
        if tuple(t.shape) != (1,) or not t.is_floating_point():
            shape = f"{list(t.shape)} {t.dtype}"
            raise ValueError(
                f"t must be [1] of floats (data without batch is 1 slide), got {shape}"
            )
        return
    if tuple(batch.shape) != (n,) or batch.dtype != torch.int64:
        raise ValueError(f"data.batch must be [{n}] int64, got {list(batch.shape)} {batch.dtype}")
    slides = f", with an entry for each slide of data.batch [{n}]"
    if t.dim() != 1 or not t.is_floating_point():
        raise ValueError(f"t must be [n_slides] of floats{slides}, got {list(t.shape)} {t.dtype}")
    if n and not 0 <= int(batch.min()) <= int(batch.max()) < t.size(0):
        shape = f"{list(t.shape)} for slides {int(batch.min())} to {int(batch.max())}"
        raise ValueError(f"t must be [n_slides]{slides}, got {shape}")


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


def check_graph(data: Data) -> None:
    """Check that edges name spots, connect spots of one slide and have their geometry.

    Args:
        data: ``edge_index [2, E]`` int64 (a sparse matrix is left to PyG), ``edge_attr [E, D]``
            and, with several slides, ``batch [N]``.

    Raises:
        ValueError: they do not.
    """
    check_edges(data.edge_index, slide_of_spots(data))
    if data.edge_attr is None:
        raise ValueError("data.edge_attr [E, D] is needed: put the slide through a graph transform")


def check_edges(edge_index: Tensor | None, batch: Tensor) -> None:
    """Check edges alone, see :func:`check_graph`."""
    if torch.compiler.is_compiling():  # values are not known while a graph is traced
        return
    if edge_index is None:
        raise ValueError("data.edge_index is needed: put the slide through graph.SpatialGraph")
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        return
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"data.edge_index must be [2, E] int64, got {list(edge_index.shape)} {edge_index.dtype}"
        )
    if not edge_index.numel():
        return
    n, low, high = batch.size(0), int(edge_index.min()), int(edge_index.max())
    if not 0 <= low <= high < n:
        raise ValueError(
            f"data.edge_index {list(edge_index.shape)} must name spots 0 to {n - 1}, "
            f"got {low} to {high}"
        )
    crossing = int((batch[edge_index[0]] != batch[edge_index[1]]).sum())
    if crossing:
        shape = list(edge_index.shape)
        raise ValueError(f"data.edge_index {shape} has {crossing} edges between slides")


def check_rows(name: str, value: Tensor, shape: tuple[int, int]) -> None:
    """Check a floating-point tensor's shape.

    Raises:
        ValueError: it is another.
    """
    if tuple(value.shape) != shape or not value.is_floating_point():
        raise ValueError(
            f"{name} must be {list(shape)} of floats, got {list(value.shape)} {value.dtype}"
        )
