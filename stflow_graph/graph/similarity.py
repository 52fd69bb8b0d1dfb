"""Edges between spots that look alike, wherever they lie on the slide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph.neighbors import spot_pitch

_CHUNK = 2**24


class SimilarityEdges(BaseTransform):
    """Adds edges of a second type to a spatial graph: nearest spots by embedding, as in ESTFlow.

    From the k spots of largest cosine similarity (of the slide's centred embeddings) an edge of
    weight 1 leads to each spot; which of equals is taken is arbitrary. ``edge_attr`` gains a last
    column, the type: 0 in space, 1 by similarity. Of an edge by similarity the columns of
    ``graph.edge_geometry`` that need no frame are log(1 + distance in pitches) and 1 - cosine; they
    do not change under motions of the slide. A layer takes the wider ``edge_attr`` with
    ``edge_features=7``. Averages over neighbours made afterwards run along both types.
    Cost O(N² F) time and O(N) memory: for slides of up to some ten thousand spots.

    Args:
        n_neighbors: k; a slide of n <= k spots uses n - 1.

    Source: ESTFlow, a public fork of STFlow, option ``multiview``.
    """

    def __init__(self, n_neighbors: int = 8) -> None:
        if n_neighbors < 1:
            raise ValueError(f"n_neighbors must be >= 1, got {n_neighbors}")
        self.n_neighbors = n_neighbors

    def forward(self, data: Data) -> Data:
        """Return ``data``, which has been through ``SpatialGraph``, with the further edges."""
        x, pos = data.x.detach(), data.pos.double()
        n = x.size(0)
        index, cosine = _most_similar(x, min(self.n_neighbors, n - 1))
        target = torch.arange(n, device=x.device)[:, None].expand_as(index)
        distance = (pos[index] - pos[:, None]).norm(dim=-1) / spot_pitch(pos)
        attr = data.edge_attr.new_zeros(index.numel(), data.edge_attr.size(1) + 1)
        attr[:, 2] = distance.log1p().flatten().to(attr.dtype)
        attr[:, 3] = 1 - cosine.flatten().to(attr.dtype)
        attr[:, -1] = 1
        edges = torch.cat(
            [data.edge_index, torch.stack([index.flatten(), target.flatten()])], dim=1
        )
        order = edges[1].argsort(stable=True)  # edges of a spot stand together
        data.edge_index = edges[:, order]
        data.edge_attr = torch.cat([F.pad(data.edge_attr, (0, 1)), attr])[order]
        data.edge_weight = torch.cat([data.edge_weight, attr[:, -1]])[order]
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_neighbors={self.n_neighbors})"


def _most_similar(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k most similar rows of every row, ``[N, k]``, and their cosines."""
    n = x.size(0)
    if k < 1:
        return x.new_empty(n, 0, dtype=torch.long), x.new_empty(n, 0)
    unit = F.normalize(x.float() - x.float().mean(dim=0), dim=1)
    parts = []
    for rows in torch.arange(n, device=x.device).split(max(1, _CHUNK // n)):
        cosine = unit[rows] @ unit.T
        cosine[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        value, index = cosine.topk(k, dim=1)
        parts.append((index, value))
    index, cosine = (torch.cat(column) for column in zip(*parts, strict=True))
    return index, cosine
