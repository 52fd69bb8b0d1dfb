r"""What values measured at some spots say of the others: Gaussian processes on a slide.

C processes, independent of each other, are seen with noise:

.. math::
    p_{ic} = u_{ic} + ε_{ic}, \qquad
    \mathrm{Cov}(u_{ic}, u_{jc}) = \sum_p σ_{cp}^2 e^{-d_{ij}^2 / r_p} + σ_{cl}^2

with the ranges of ``flow.field``, of which :math:`e^{-d^2 / r_p}` is the covariance over a distance
d; ε has variance :math:`τ_c^2`. Parameters are those of largest posterior density (Rasmussen and
Williams 2006, equation 5.8, and a normal prior on their logarithms).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from torch import Tensor

_N_SITES = 256  # spots whose covariances are made to choose parameters
_CLUSTER = 16  # of them lie together, so that short and long distances occur
_N_NEAR, _N_FAR = 48, 16  # measured spots that inform a spot: the nearest, and some for all
_BATCH_NUMBERS = 2**23
_SEARCH = {"ftol": 1e-5}  # of the loss; its parameters need two digits
_DEAF = 1e6  # noise of a spot that is there already
_MIN_NOISE = 1e-3  # of a process's variance: Cholesky factors in float32 need some

# standard deviations of the logarithms' prior. Of a cohort's processes, about what is written
# beside; of a slide's, about the cohort's
_SMOOTH_SHARE, _SHARE_SPREAD, _RANGE_SPREAD, _NOISE_SPREAD = 0.1, 2.0, 1.0, 1.0
_SLIDE_AMPLITUDE, _SLIDE_RANGE, _SLIDE_NOISE = 1.0, 0.25, 0.35


@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """Some spots of a slide and the values of all processes there.

    Attributes:
        kernels: ``[3, n, n]`` covariances of each range.
        values: of each process ``[n, K]``, K independent processes with the same parameters.
    """

    kernels: np.ndarray
    values: list[np.ndarray]

    @classmethod
    def of(
        cls, pos: np.ndarray, ranges: np.ndarray, values: Sequence[np.ndarray], keys: np.ndarray
    ) -> Sites:
        """Choose at most 256 spots, in clusters.

        Args:
            pos: ``[N, 2]``.
            ranges: ``[3]`` in squared units of ``pos``.
            values: of each process ``[N, K]``.
            keys: ``[N]`` of the spots: the choice does not depend on their order.
        """
        rows = _clusters(pos, keys)
        squares = np.square(pos[rows, None] - pos[rows]).sum(-1)
        kernels = np.exp(-squares / ranges[:, None, None])
        return cls(kernels, [np.asarray(v[rows], np.float64) for v in values])


def _clusters(pos: np.ndarray, keys: np.ndarray) -> np.ndarray:
    order = np.argsort(keys)
    if len(pos) <= _N_SITES:
        return order
    centres = order[: _N_SITES // _CLUSTER]
    _, near = cKDTree(pos[order]).query(pos[centres], k=_CLUSTER)
    return order[np.unique(near)]


@dataclasses.dataclass(frozen=True)
class Processes:
    r"""Parameters of C processes.

    Attributes:
        smooth: ``[C, 3]`` :math:`σ_{cp}^2`.
        level: ``[C]`` :math:`σ_{cl}^2`.
        noise: ``[C]`` :math:`τ_c^2`.
    """

    smooth: np.ndarray
    level: np.ndarray
    noise: np.ndarray

    @classmethod
    def fit(cls, slides: Sequence[Sites], variances: np.ndarray) -> Processes:
        """Return the processes that slides have in common.

        How the ranges share the smooth variance is common to all processes.

        Args:
            slides: their values.
            variances: ``[C]`` of single spots; a level is taken to vary as much.
        """
        smooth = np.repeat(_SMOOTH_SHARE * variances[:, None], 3, axis=1)
        start = cls(smooth, variances, variances)
        n = len(variances)
        each = np.eye(n)
        spreads = [_SHARE_SPREAD] * n + [_RANGE_SPREAD] * 3 + [_NOISE_SPREAD] * n
        design = np.zeros((n, 4, 2 * n + 3))
        design[:, :3, :n] = each[:, None]
        design[:, :3, n : n + 3] = np.eye(3)
        design[:, 3, n + 3 :] = each
        return start._improved(slides, design, np.array(spreads))

    def adapted(self, slide: Sites) -> Processes:
        """Return the processes of a slide like those that these were fitted to.

        Its smooth variances may be larger or smaller, its ranges longer or shorter, its noise
        stronger or weaker, each alike for all processes.
        """
        design = np.zeros((len(self.noise), 4, 5))
        design[:, :3, 0], design[:, 3, 1] = 1, 1
        design[:, :3, 2:] = np.eye(3)
        spreads = [_SLIDE_AMPLITUDE, _SLIDE_NOISE] + [_SLIDE_RANGE] * 3
        return self._improved([slide], design, np.array(spreads))

    def _improved(
        self, slides: Sequence[Sites], design: np.ndarray, spreads: np.ndarray
    ) -> Processes:
        """Return the most probable parameters; logarithms are these plus ``design`` times θ."""
        start = np.log(np.column_stack([self.smooth, self.noise]))

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = np.exp(start + design @ theta)
            value, slope = 0.5 * np.square(theta / spreads).sum(), theta / np.square(spreads)
            for slide in slides:
                for c, values in enumerate(slide.values):
                    # many genes that share parameters do not count more than the other processes
                    weight = min(1.0, len(parameters) / values.shape[1])
                    one, by = _deviance(slide.kernels, parameters[c], self.level[c], values)
                    value += weight * one
                    slope = slope + weight * ((by * parameters[c]) @ design[c])
            return value, slope

        best = minimize(loss, np.zeros(len(spreads)), jac=True, method="L-BFGS-B", options=_SEARCH)
        smooth_and_noise = np.exp(start + design @ best.x)
        return Processes(smooth_and_noise[:, :3], self.level, smooth_and_noise[:, 3])


def _deviance(
    kernels: np.ndarray, parameters: np.ndarray, level: float, values: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return minus the log likelihood of values, less a constant, and its slope."""
    n, n_values = values.shape
    flat = kernels.reshape(3, -1)  # products with it copy nothing
    covariance = (parameters[:3] @ flat).reshape(n, n)
    covariance += level
    covariance.flat[:: n + 1] += parameters[3] + _MIN_NOISE * level
    factor, failed = dpotrf(covariance, lower=1)
    if failed:  # the search tries other parameters
        return np.inf, np.zeros(4)
    half, _ = dpotri(factor, lower=1)  # the lower half of the inverse, of a Cholesky factor
    half *= np.tri(n)
    inverse = half + half.T
    inverse.flat[:: n + 1] *= 0.5
    solved = inverse @ values
    log_det = 2 * np.log(np.diagonal(factor)).sum()
    slope = 0.5 * (n_values * inverse - solved @ solved.T)
    by = [*(flat @ slope.ravel()), np.trace(slope)]
    return float(0.5 * (values * solved).sum() + 0.5 * n_values * log_det), np.array(by)


class Kriging:
    """The linear map from values measured at n spots to the processes everywhere.

    A spot is informed by the 48 measured spots nearest to it, and by 16 others that are the same
    for all spots and tell the slide's level (Vecchia 1988). It does not depend on the order of
    spots, nor on which others are asked for.

    Args:
        pos: ``[n, 2]`` the measured spots.
        keys: ``[n]`` of them, see ``flow.noise``.
        processes: their parameters.
        ranges: ``[3]`` in squared units of ``pos``.
        device: where weights are computed.
    """

    def __init__(
        self,
        pos: np.ndarray,
        keys: np.ndarray,
        processes: Processes,
        ranges: np.ndarray,
        device: torch.device,
    ) -> None:
        order = np.argsort(keys)  # of spots that are as near, the tree takes one by their order
        self._tree, self._order = cKDTree(pos[order]), order
        self._pos = torch.from_numpy(pos[order]).to(device)
        self._ranges = torch.from_numpy(ranges).to(device)
        total = processes.smooth.sum(1) + processes.level
        noise = processes.noise + _MIN_NOISE * total
        tables = (processes.smooth, processes.level, noise)
        self._smooth, self._level, self._noise = (
            torch.from_numpy(table).float().to(device) for table in tables
        )

    def weights(self, pos: np.ndarray, which: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the measured spots ``[b, m]`` that inform spots, and weights ``[b, C, m]``.

        Args:
            pos: ``[b, 2]`` the spots.
            which: of the processes.
        """
        n_processes, m = len(self._noise[which]), min(len(self._order), _N_NEAR + _N_FAR)
        rows = max(1, _BATCH_NUMBERS // max(n_processes * m * m, 1))
        parts = [
            self._weights(pos[start : start + rows], which) for start in range(0, len(pos), rows)
        ]
        order = torch.from_numpy(self._order).to(self._pos.device)
        return order[torch.cat([i for i, _ in parts])], torch.cat([w for _, w in parts])

    def _weights(self, pos: np.ndarray, which: slice) -> tuple[Tensor, Tensor]:
        index, twice = self._informing(pos)
        near = self._pos[index]
        here = torch.from_numpy(pos).to(near.device)[:, None]
        among, across = self._covariance(near, near, which), self._covariance(here, near, which)
        noise = self._noise[which, None] + _DEAF * twice[:, None]
        among.diagonal(dim1=-2, dim2=-1).add_(noise)
        solved = torch.cholesky_solve(across.mT, torch.linalg.cholesky(among))[..., 0]
        return index, solved.masked_fill(twice[:, None], 0)

    def _covariance(self, left: Tensor, right: Tensor, which: slice) -> Tensor:
        """Return ``[b, C, l, m]`` of places ``[b, l, 2]`` and ``[b, m, 2]``."""
        squares = (left[:, :, None] - right[:, None]).square().sum(-1)
        smooth, level = self._smooth[which], self._level[which]
        total = level[:, None, None].expand(len(left), -1, *squares.shape[1:]).contiguous()
        for p, reach in enumerate(self._ranges):
            kernel = torch.exp(-squares / reach).float()
            total.addcmul_(kernel[:, None], smooth[:, p, None, None])
        return total

    def _informing(self, pos: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return ``[b, m]`` places in the sorted spots, and which are there already."""
        n = len(self._order)
        n_near = n if n <= _N_NEAR + _N_FAR else _N_NEAR
        _, near = self._tree.query(pos, k=np.arange(1, n_near + 1))
        n_far = min(n - n_near, _N_FAR)
        far = np.broadcast_to(np.arange(n_far), (len(pos), n_far))
        twice = (far[:, :, None] == near[:, None]).any(-1)
        twice = np.concatenate([np.zeros(near.shape, bool), twice], axis=1)
        device = self._pos.device
        index = torch.from_numpy(np.concatenate([near, far], axis=1)).to(device)
        return index, torch.from_numpy(twice).to(device)
