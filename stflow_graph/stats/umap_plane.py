"""UMAP of spots in the plane, where the package umap-learn is installed."""

from __future__ import annotations

import warnings

import numpy as np

_N_NEIGHBORS = 15
MIN_SPOTS = 2 * _N_NEIGHBORS


def umap_plane(features: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str] | None:
    """Return places of spots in the plane, neighbours in ``features`` beside each other.

    It starts from the first two features, so that groups lie in the same order for every seed; one
    thread, so that the same seed gives the same places.

    Args:
        features: ``[n, P]`` principal components, at least :data:`MIN_SPOTS` rows.
        seed: of the optimisation.

    Returns:
        The places ``[n, 2]`` and the version of umap-learn; None where it cannot be imported.

    Source: McInnes, Healy and Melville 2018, arXiv:1802.03426; the start: Kobak and Linderman 2021,
        Nat. Biotechnol. 39, 156-157.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of its optional networks
        try:
            import umap
        except ImportError:
            return None
    start: np.ndarray | str = "random"
    if features.shape[1] > 1 and np.ptp(features[:, :2], axis=0).all():  # no line
        start = features[:, :2]
    model = umap.UMAP(n_neighbors=_N_NEIGHBORS, random_state=seed, n_jobs=1, init=start)
    return np.asarray(model.fit_transform(features), np.float64), str(umap.__version__)
