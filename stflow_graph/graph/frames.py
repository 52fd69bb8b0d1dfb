"""Geometry of edges that rotations, reflections and translations leave unchanged.

STFlow (Huang et al., ICML 2025) writes each edge in the principal axes of its neighbourhood's
covariance and averages over the four choices of their signs. In the middle of a hexagonal or
square array the covariance is a multiple of the identity and its axes are arbitrary. Here the
axes carry a weight that vanishes smoothly as the neighbourhood becomes isotropic; the remaining
features depend on distances and on the covariance itself alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from stflow_graph.graph.points import take_points

EDGE_FEATURES = 6
_FULL_WEIGHT = 0.3
_TINY = 1e-12
# in squared pitches: coincident spots have no orientation
_COINCIDENT = 1e-6


def edge_geometry(
    pos: Tensor, edge_index: Tensor, edge_weight: Tensor, full_weight: float = _FULL_WEIGHT
) -> Tensor:
    """Return the invariant features of every edge.

    With r = p_j - p_i, c_i and C_i the weighted mean and covariance of r over the neighbours of i,
    and U_i the axes of C_i, the columns are: the two coordinates (r - c_i) U_i (their signs are
    arbitrary: average over them), ||r||, ||r - c_i||, (r - c_i)ᵀ (C_i / tr C_i - I / 2) (r - c_i),
    and the axes' weight s(a_i / full_weight), where a_i = (λ₂ - λ₁) / (λ₁ + λ₂) and s is the
    smooth step. Axes of weight 0 may point anywhere; everything else is continuous in the positions
    (2e-6 squared pitches are added to λ₁ + λ₂: coincident spots have no orientation).

    Args:
        pos: ``[N, 2]`` positions in spot pitches.
        edge_index: ``[2, E]`` neighbours (row 0) and spots (row 1).
        edge_weight: ``[E]`` weights of the neighbours.
        full_weight: anisotropy a_i from which the axes count in full.

    Returns:
        ``[E, 6]``, of ``pos``'s dtype (use float64: distances are differences of positions).
    """
    source, spot = edge_index
    first = int(spot.min()) if spot.numel() else 0
    target = spot - first  # sums have rows for the spots that have edges here
    n = int(target.max()) + 1 if target.numel() else 0
    weight = edge_weight.to(pos.dtype)[:, None]
    r = take_points(pos, source) - take_points(pos, spot)
    total = scatter(weight, target, dim_size=n).clamp(min=_TINY)
    centre = scatter(weight * r, target, dim_size=n) / total
    d = r - take_points(centre, target)
    products = torch.stack([d[:, 0] ** 2, d[:, 1] ** 2, d[:, 0] * d[:, 1]], dim=1)
    xx, yy, xy = (scatter(weight * products, target, dim_size=n) / total).unbind(1)
    half_trace, half_difference = (xx + yy) / 2, (xx - yy) / 2
    spread = torch.hypot(half_difference, xy)
    anisotropy = spread / (half_trace + _COINCIDENT)
    step = (anisotropy / full_weight).clamp(0, 1)
    axis_weight = step * step * (3 - 2 * step)
    angle = torch.atan2(xy, half_difference) / 2
    cos, sin = angle.cos()[target], angle.sin()[target]
    minor, major = d[:, 1] * cos - d[:, 0] * sin, d[:, 0] * cos + d[:, 1] * sin
    quadratic = (half_difference[target] * (products[:, 0] - products[:, 1]) / 2).add(
        xy[target] * products[:, 2]
    ) / (half_trace[target] + _TINY)
    columns = [minor, major, r.norm(dim=1), d.norm(dim=1), quadratic, axis_weight[target]]
    return torch.stack(columns, dim=1)
