"""The model of simulated counts: the drivers of each gene and the measurement noise.

For spot s and gene g, with states a_s of the spot's own patch and their mean ā_s over the rings of
neighbours,

    log λ_sg = b_g + w_g·a_s + c_g·ā_s + l_g + d_s
    count_sg ~ D_g · Poisson(λ_sg Γ_sg e^{ε_s})

with ε_s ~ N(0, σ²) the random part of a spot's depth, Γ_sg of mean 1 and variance 1/θ (so counts
are negative binomial), D_g ~ Bernoulli(1 − π) the dropout, and d_s the depth explained by the slide
and the cells in the patch. Each gene has one of w_g ("own"), c_g ("neighbour"), a level l_g of
its patient ("slide") or none of them ("noise" and the genes beyond the modelled ones).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from stflow_graph.simulation.fields import REGIONS, STATES

FEATURES = (*REGIONS, *STATES)
# prefix of the names, number of genes, and range of the mean count at features, level and depth 0
_CLASSES = {
    "own": ("OWN", 20, (2.0, 9.0)),
    "neighbour": ("NBR", 15, (3.0, 10.0)),
    "slide": ("SLD", 5, (2.0, 9.0)),
    "noise": ("NSE", 10, (1.0, 9.0)),
    "housekeeping": ("HKG", 6, (15.0, 40.0)),
    "unexpressed": ("OFF", 4, (0.002, 0.01)),
}
CLASSES = {name: n for name, (_, n, _) in _CLASSES.items()}
_BEYOND = ("housekeeping", "unexpressed")  # the gene list
MODELLED = {name: n for name, n in CLASSES.items() if name not in _BEYOND}


@dataclasses.dataclass(frozen=True)
class GeneModel:
    """The cohort's genes; F = ``len(FEATURES)`` tissue features, G genes.

    Attributes:
        genes: G names.
        classes: G names of ``CLASSES``.
        base: ``[G]`` b_g.
        own: ``[F, G]`` w_g.
        coupling: ``[F, G]`` c_g.
        patient_sd: standard deviation of the patients' levels l_g of "slide" genes.
        coupling_rings: rings of neighbours in ā_s.
        depth_cells: exponent of the number of cells in d_s.
        depth_slide_sd: standard deviation of the slides' log depth.
        depth_spot_sd: σ.
        dispersion: θ.
        dropout: π.
    """

    genes: list[str]
    classes: list[str]
    base: np.ndarray
    own: np.ndarray
    coupling: np.ndarray
    patient_sd: float = 0.8
    coupling_rings: int = 2
    depth_cells: float = 0.2
    depth_slide_sd: float = 0.25
    depth_spot_sd: float = 0.25
    dispersion: float = 6.0
    dropout: float = 0.04

    @property
    def modelled(self) -> list[str]:
        """The genes of the gene list, of the classes in ``MODELLED``."""
        pairs = zip(self.genes, self.classes, strict=True)
        return [gene for gene, which in pairs if which in MODELLED]

    def rows(self, which: str) -> np.ndarray:
        """Return the indices of a class's genes."""
        return np.flatnonzero(np.array(self.classes) == which)

    def log_rate(
        self,
        features: np.ndarray,
        neighbour_features: np.ndarray,
        patient_level: np.ndarray,
        log_depth: np.ndarray,
    ) -> np.ndarray:
        """Return log λ, ``[N, G]``.

        Args:
            features: ``[N, F]`` a_s.
            neighbour_features: ``[N, F]`` ā_s.
            patient_level: ``[G]`` l_g, used for "slide" genes only.
            log_depth: ``[N]`` d_s.
        """
        level = np.zeros(len(self.genes))
        level[self.rows("slide")] = patient_level[self.rows("slide")]
        tissue = features @ self.own + neighbour_features @ self.coupling
        return self.base + level + tissue + log_depth[:, None]

    def log_depth(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return d_s for the number of nuclei in each patch ``[N]`` and a random slide depth."""
        # a patch without nuclei yields as much as 10; a typical patch has 70
        return self.depth_cells * np.log((cells + 10) / 80) + rng.normal(0, self.depth_slide_sd)

    def sample(self, log_rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return counts ``[N, G]`` int64 at log λ."""
        depth = rng.normal(0, self.depth_spot_sd, (len(log_rate), 1))
        gamma = rng.gamma(self.dispersion, 1 / self.dispersion, log_rate.shape)
        counts = rng.poisson(np.exp(log_rate + depth) * gamma)
        return counts * (rng.uniform(size=counts.shape) >= self.dropout)

    def expected(self, log_rate: np.ndarray) -> np.ndarray:
        """Return E[log1p(count)] at log λ over all noise of :meth:`sample`, ``[N, G]``."""
        mean = expected_log1p(log_rate, self.dispersion, self.depth_spot_sd)
        return (1 - self.dropout) * mean

    def describe(self) -> dict[str, Any]:
        """Return the model as JSON: its formula, its parameters and those of every gene."""
        numbers = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is not dataclasses.MISSING
        }
        genes = {
            gene: {
                "class": self.classes[i],
                "mean_count": float(np.exp(self.base[i])),
                "own": _nonzero(self.own[:, i]),
                "neighbour": _nonzero(self.coupling[:, i]),
            }
            for i, gene in enumerate(self.genes)
        }
        formula = (
            "log rate = log mean_count + own.features + neighbour.mean(features over the rings) "
            "+ patient's level (slide genes) + depth_cells log((nuclei + 10) / 80) "
            "+ slide's depth; "
            "count = Bernoulli(1 - dropout) * Poisson(rate * Gamma(dispersion, 1 / dispersion) "
            "* exp(N(0, depth_spot_sd^2)))"
        )
        return {"formula": formula, **numbers, "genes": genes}


def make_gene_model(rng: np.random.Generator) -> GeneModel:
    """Return a gene model with random levels and loadings; the classes and drivers are fixed."""
    classes = [name for name, count in CLASSES.items() for _ in range(count)]
    genes = [f"{prefix}{i + 1:02d}" for prefix, n, _ in _CLASSES.values() for i in range(n)]
    low, high = np.log([_CLASSES[name][2] for name in classes]).T
    own, coupling = np.zeros((2, len(FEATURES), len(genes)))
    for i in range(MODELLED["own"]):
        # every feature in turn, and a weaker second one
        first, second = i % len(FEATURES), (3 * i + 5) % len(FEATURES)
        own[second, i] = rng.choice([-0.3, 0.3])
        own[first, i] = rng.uniform(1.4, 2.0) if first < len(REGIONS) else _signed(rng, 0.6, 0.9)
    for i in range(MODELLED["neighbour"]):
        state = len(REGIONS) + i % len(STATES)
        # a mean over 18 neighbours varies by about 0.4, so this is a log fold change near 1
        coupling[state, MODELLED["own"] + i] = _signed(rng, 2.0, 2.6)
    return GeneModel(genes, classes, rng.uniform(low, high), own, coupling)


def expected_log1p(log_mean: np.ndarray, dispersion: float, log_sd: float) -> np.ndarray:
    """Return E[log(1 + K)], K negative binomial of mean λ e^{σz}, z ~ N(0, 1).

    With log(1 + k) = ∫₀^∞ e^{−t} (1 − e^{−kt}) / t dt and the generating function
    E[u^K] = (1 + λ(1 − u)/θ)^{−θ}, the expectation is one smooth integral over s = log t (trapezoid
    rule, which converges geometrically there) and one over z (Gauss and Hermite).

    Args:
        log_mean: log λ, any shape.
        dispersion: θ; the variance is λ + λ²/θ.
        log_sd: σ.

    Returns:
        The expectation in log_mean's shape, float64, to about 1e-6 for λ from 0 to 1e6.
    """
    step = 0.4
    s = np.arange(-30.0, 4.0, step)
    weight = step * np.exp(-np.exp(s))
    one_minus_u = -np.expm1(-np.exp(s))
    z, z_weight = np.polynomial.hermite_e.hermegauss(9)
    z_weight = z_weight / z_weight.sum()
    total = np.zeros(np.shape(log_mean))
    for shift, share in zip(log_sd * z, z_weight, strict=True):
        mean = np.exp(log_mean + shift) / dispersion
        for v, w in zip(one_minus_u, weight, strict=True):
            total -= share * w * np.expm1(-dispersion * np.log1p(mean * v))
    return total


def _signed(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(low, high))


def _nonzero(loadings: np.ndarray) -> dict[str, float]:
    return {FEATURES[i]: float(loadings[i]) for i in np.flatnonzero(loadings)}
