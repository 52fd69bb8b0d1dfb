"""How far embeddings lie from those of the training slides, and the expression predicted there.

The embeddings of the training slides are described by probabilistic principal components (Tipping
& Bishop 1999): a mean, r components with variances, and one variance for all other directions. A
spot's distance is its squared Mahalanobis distance under them, divided by the number of channels
F, so about 1 for spots of the training slides,

    d(x) = (sum_j z_j² / lambda_j + |x - mean - sum_j z_j v_j|² / sigma²) / F,  z_j = v_j (x - mean)

What is far is learnt by holding training slides out in turn: nothing may be further than held-out
slides are from the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.linalg import eigh

_COMPONENTS = 16
_MAX_SPOTS = 2000  # of a slide, evenly spaced
_MAX_SPOTS_OF_ALL = 40_000
_MAX_PARTS = 8  # that are held out in turn
_SPOT_QUANTILE = 0.99
_MAX_SPOT = 2.0  # of a slide's limit, that of a spot
_SLACK = 1.1  # of a slide's median, beyond the furthest training slide's
# share of a colour in the stain of a slide, beyond those of the training slides
_STAIN_SLACK = 0.05
_NOT_ORTHONORMAL = 1e-3  # what rounding never reaches
_FLOAT = np.finfo(np.float32)  # as which all is stored
LEVELS = np.array([0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100]) / 100


@dataclasses.dataclass(frozen=True)
class TrainingRange:
    """What the training slides' embeddings look like, and the expression predicted for them.

    Attributes:
        mean: ``[F]``.
        components: ``[r, F]`` orthonormal.
        variances: ``[r]`` along them.
        residual: variance along any other direction.
        spot_limit: distance up to which a spot is in range; 99% of the spots of held-out slides
            are, where there are several slides.
        slide_limit: median distance of a slide's spots up to which it is in range.
        stains: ``[S, 3]`` shares of red, green and blue in the optical density of each training
            slide, NaN where unknown.
        expression: ``[G, L]`` quantiles of the held-out predictions at ``LEVELS``, log1p units.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    residual: float
    spot_limit: float
    slide_limit: float
    stains: np.ndarray
    expression: np.ndarray

    @classmethod
    def fit(
        cls,
        slides: Iterable[np.ndarray],
        predictions: Sequence[np.ndarray],
        stains: Sequence[np.ndarray | None] = (),
        n_slides: int = 1,
    ) -> TrainingRange:
        """Describe training slides.

        Args:
            slides: embeddings ``[N_s, F]`` of each, taken one by one; of many slides fewer spots
                each are looked at.
            predictions: ``[n, G]`` predictions of slides, or parts, by networks that did not see
                them.
            stains: of each slide where known, ``[3]``.
            n_slides: their number.
        """
        most = min(_MAX_SPOTS, max(1, _MAX_SPOTS_OF_ALL // n_slides))
        taken = [_some(slide, most).astype(np.float64) for slide in slides]
        if len(taken) == 1:  # halves of the only slide
            taken = np.array_split(taken[0], 2)
        parts = [np.concatenate(taken[i::_MAX_PARTS]) for i in range(min(len(taken), _MAX_PARTS))]
        held_out = []
        for i, part in enumerate(parts):
            others = np.concatenate([other for j, other in enumerate(parts) if j != i])
            held_out.append(_distances(part, *_components(others)))
        # of every slide as much as of any other
        spot_limit = np.median([np.quantile(part, _SPOT_QUANTILE) for part in held_out])
        slide_limit = _SLACK * max(float(np.median(part)) for part in held_out)
        known = [np.full(3, np.nan) if stain is None else stain for stain in stains]
        # few slides are far from each other in directions that none of them has
        spot_limit = min(float(spot_limit), _MAX_SPOT * slide_limit)
        # slides of constant embeddings are not or immeasurably far from others
        spot_limit, slide_limit = np.clip([spot_limit, slide_limit], _FLOAT.tiny, _FLOAT.max)
        return cls(
            *_components(np.concatenate(taken)),
            spot_limit=float(spot_limit),
            slide_limit=float(slide_limit),
            stains=np.array(known, dtype=np.float64).reshape(-1, 3),
            expression=np.quantile(np.concatenate(list(predictions)), LEVELS, axis=0).T,
        )

    def distances(self, x: np.ndarray) -> np.ndarray:
        """Return the distances ``[n]`` of embeddings ``[n, F]``, relative to ``spot_limit``.

        Above 1 a spot is further from the training slides than 99% of theirs from each other.
        """
        mean, components = (part.astype(x.dtype) for part in (self.mean, self.components))
        far = _distances(x, mean, components, self.variances, self.residual)
        return np.minimum(far / self.spot_limit, _FLOAT.max)

    def slide_in_range(self, distances: np.ndarray) -> bool:
        """Return whether a slide's median distance is none that training slides do not have."""
        return float(np.median(distances)) * self.spot_limit <= self.slide_limit

    def stain_in_range(self, stain: np.ndarray | None) -> bool | None:
        """Return whether a slide's stain lies among the training slides'; None if unknown."""
        if stain is not None and not np.any(stain):
            return False  # nothing is stained
        known = self.stains[np.isfinite(self.stains).all(axis=1)]
        if stain is None or not len(known) or not np.isfinite(stain).all():
            return None
        low, high = known.min(axis=0) - _STAIN_SLACK, known.max(axis=0) + _STAIN_SLACK
        return bool(((low <= stain) & (stain <= high)).all())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all fields as arrays, for a file."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # in C's order: safetensors writes the bytes as they lie
        return {name: np.array(value, np.float32, order="C") for name, value in values.items()}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], n_channels: int, n_genes: int
    ) -> TrainingRange:
        """Return what :meth:`arrays` gave.

        Raises:
            KeyError: an array is missing.
            ValueError: arrays that :meth:`arrays` gives of no training slides: others, of another
                type, shapes that do not fit, numbers that are none or that cannot be.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(arrays) - set(names)):
            raise ValueError(f"unexpected: {', '.join(unknown[:3])}")
        for name in names:
            if arrays[name].dtype != np.float32:
                raise ValueError(f"{name}: {arrays[name].dtype}, expected float32")
        values = {name: arrays[name].astype(np.float64) for name in names}
        _check_shapes(values, n_channels, n_genes)
        _check_numbers(values)
        residual, *limits = (float(values[n]) for n in ("residual", "spot_limit", "slide_limit"))
        return cls(
            values["mean"],
            values["components"],
            values["variances"],
            residual,
            limits[0],
            limits[1],
            values["stains"],
            values["expression"],
        )


def _check_shapes(values: Mapping[str, np.ndarray], n_channels: int, n_genes: int) -> None:
    rank = min(max(values["variances"].size, 1), n_channels)
    shapes = {
        "mean": (n_channels,),
        "components": (rank, n_channels),
        "variances": (rank,),
        "stains": (len(values["stains"]) if values["stains"].ndim else 0, 3),
        "expression": (n_genes, len(LEVELS)),
    }
    for name, value in values.items():
        if value.shape != shapes.get(name, ()):
            raise ValueError(f"{name}: shape {value.shape}, expected {shapes.get(name, ())}")


def _check_numbers(values: Mapping[str, np.ndarray]) -> None:
    """Refuse values that would give distances or quantiles which are none."""
    for name, value in values.items():
        if np.isinf(value).any() or (name != "stains" and np.isnan(value).any()):
            raise ValueError(f"{name}: not finite")
    for name in ("variances", "residual", "spot_limit", "slide_limit"):
        if values[name].min() < _FLOAT.tiny:
            raise ValueError(f"{name}: not positive")
    components = values["components"]
    off = np.abs(components @ components.T - np.eye(len(components))).max()
    if off > _NOT_ORTHONORMAL:
        raise ValueError("components: not orthonormal")
    expression = values["expression"]
    rounding = 1e-6 * np.abs(expression).max(initial=0)
    if (np.diff(expression, axis=1) < -rounding).any():
        raise ValueError("expression: quantiles that decrease")


def _some(slide: np.ndarray, most: int) -> np.ndarray:
    step = -(-len(slide) // most)
    return slide[::step]


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return mean, components, variances and residual variance of ``[n, F]``."""
    mean, width = x.mean(axis=0), x.shape[1]
    covariance = np.cov(x, rowvar=False, bias=True).reshape(width, width)
    rank = max(1, min(_COMPONENTS, len(x) - 1, width // 2))
    first = max(width - rank, 0)
    variances, vectors = eigh(covariance, subset_by_index=(first, width - 1))
    rest = max(float(np.trace(covariance) - variances.sum()), 0.0) / max(width - rank, 1)
    # of directions without variance, such as dead channels, any value is far
    floor = max(1e-6 * float(np.trace(covariance)) / width, np.finfo(np.float32).tiny)
    rest = max(rest, floor)
    return mean, vectors.T, np.maximum(variances, rest), rest


def _distances(
    x: np.ndarray,
    mean: np.ndarray,
    components: np.ndarray,
    variances: np.ndarray,
    residual: float,
) -> np.ndarray:
    centred = x - mean
    z = centred @ components.T
    rest = np.einsum("nf,nf->n", centred, centred) - np.einsum("nr,nr->n", z, z)
    far: np.ndarray = (z**2 / variances).sum(axis=1) + np.maximum(rest, 0) / residual
    return far / x.shape[1]
