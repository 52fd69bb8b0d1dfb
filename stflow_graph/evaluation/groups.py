"""Maps of very many spots: neighbours are drawn as one."""

from __future__ import annotations

import numpy as np

MAX_DRAWN = 20_000  # spots of a map; of more, neighbours are drawn together


def groups_of_spots(coords: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return places to draw, about 20,000 at most, and what is drawn there.

    Args:
        coords: ``[N, 2]`` px.

    Returns:
        The places ``[M, 2]``, and of each spot the place ``[N]``; None where every spot is drawn.
    """
    if len(coords) <= MAX_DRAWN:
        return coords, None
    extent = np.ptp(coords, axis=0)
    edge = float(np.sqrt(max(extent[0], 1.0) * max(extent[1], 1.0) / MAX_DRAWN))
    cells = np.floor((coords - coords.min(axis=0)) / edge).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return np.stack([group_means(coords[:, axis], group) for axis in (0, 1)], axis=1), group


def group_means(values: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """Return the mean ``[M]`` of each group's values ``[N]``; without groups the values."""
    if group is None:
        return values
    return np.bincount(group, weights=values) / np.bincount(group)


def most_frequent(labels: np.ndarray, group: np.ndarray | None) -> np.ndarray:
    """Return the commonest label ``[M]`` of each group, the smaller of equals.

    Args:
        labels: ``[N]`` from 0 on.
        group: ``[N]`` as of :func:`groups_of_spots`.
    """
    if group is None:
        return labels
    n_labels, pairs = int(labels.max()) + 1, group.astype(np.int64)
    counts = np.bincount(pairs * n_labels + labels, minlength=(int(group.max()) + 1) * n_labels)
    return counts.reshape(-1, n_labels).argmax(axis=1)
