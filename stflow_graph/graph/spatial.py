"""The transform that turns positions into the graph that denoisers read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph.frames import edge_geometry
from stflow_graph.graph.neighbors import in_pitches, nearest_neighbors, rows_at_a_time
from stflow_graph.graph.whole import Edges

# in pitches; cells or bins that the segmentation put on top of each other
_SAME_PLACE = 1e-3


class SpatialGraph(BaseTransform):
    """Adds the spatial graph of one slide: ``edge_index``, ``edge_weight`` and ``edge_attr``.

    Everything that depends on the positions alone is computed here, once per slide, and shared by
    all layers and sampling steps. Distances are in spot pitches, so pixels, µm and array units give
    the same graph. ``pos`` itself is left as it is.

    Args:
        n_neighbors: k of the k nearest neighbours.
        slack: relative width of the cut-off, see ``nearest_neighbors``.
        backend: k-NN backend, see ``graph.backends``.
    """

    def __init__(self, n_neighbors: int = 8, slack: float = 0.1, backend: str = "auto") -> None:
        self.n_neighbors = n_neighbors
        self.slack = slack
        self.backend = backend

    def forward(self, data: Data) -> Data:
        """Return ``data`` with ``edge_index [2, E]``, ``edge_weight [E]``, ``edge_attr [E, 6]``."""
        rows = torch.arange(len(data.pos), device=data.pos.device)
        data.edge_index, data.edge_attr, data.edge_weight = self.edges_of(data.pos)(rows)
        return data

    def edges_of(self, pos: Tensor) -> Callable[[Tensor], Edges]:
        """Return what gives the edges that end on some spots, sorted by (spot, neighbour).

        Args:
            pos: ``[N, 2]`` positions of one slide.
        """
        pos, search = in_pitches(pos, self.n_neighbors, self.backend)

        def edges(rows: Tensor) -> Edges:
            near = nearest_neighbors(
                pos,
                self.n_neighbors,
                slack=self.slack,
                same_place=_SAME_PLACE,
                search=search,
                rows=rows,
            )
            spot = near.edge_index[1].contiguous()
            n_rows = rows_at_a_time(pos.device)  # in float64 their edges take a dozen tensors
            cuts = torch.searchsorted(spot, rows[n_rows::n_rows].contiguous()).tolist()
            sizes = [b - a for a, b in zip([0, *cuts], [*cuts, len(spot)], strict=True)]
            parts = zip(near.edge_index.split(sizes, dim=1), near.weight.split(sizes), strict=True)
            geometry = [edge_geometry(pos, *each).to(torch.float32) for each in parts]
            return Edges(near.edge_index, torch.cat(geometry), near.weight.to(torch.float32))

        return edges

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_neighbors={self.n_neighbors}, slack={self.slack}, "
            f"backend={self.backend!r})"
        )
