"""The probability path from the prior to the data."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PathSample:
    """A point on the path between two ends.

    Attributes:
        y_t: ``[N, G]`` the point.
        t: ``[n_slides]`` flow time of each slide, in [0, 1].
        y_0: ``[N, G]`` the end drawn from the prior.
        y_1: ``[N, G]`` the end taken from the data.
    """

    y_t: Tensor
    t: Tensor
    y_0: Tensor
    y_1: Tensor


def linear_path(y_0: Tensor, y_1: Tensor, t: Tensor, batch: Tensor | None = None) -> PathSample:
    r"""Return the point :math:`y_t = (1 - t)\, y_0 + t\, y_1` of the straight path.

    Every slide has its own t, shared by its spots (Huang et al., ICML 2025, section 3.2).

    Args:
        y_0: ``[N, G]`` sample of the prior.
        y_1: ``[N, G]`` expression.
        t: ``[n_slides]`` flow times.
        batch: ``[N]`` slide of each spot; None for one slide.

    Raises:
        ValueError: shapes that do not fit; the message prints them.
    """
    if y_0.dim() != 2 or y_0.shape != y_1.shape:
        raise ValueError(f"y_0 and y_1 must be [N, G], got {list(y_0.shape)}, {list(y_1.shape)}")
    if batch is None and tuple(t.shape) != (1,):
        raise ValueError(f"t must be [1] for one slide, got {list(t.shape)}")
    if batch is not None and (t.dim() != 1 or batch.shape != y_0.shape[:1]):
        raise ValueError(
            f"t must be [n_slides] and batch [{y_0.size(0)}], "
            f"got {list(t.shape)} and {list(batch.shape)}"
        )
    t_spot = (t if batch is None else t[batch])[:, None]
    return PathSample((1 - t_spot) * y_0 + t_spot * y_1, t, y_0, y_1)
