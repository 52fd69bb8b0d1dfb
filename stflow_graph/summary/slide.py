"""The summary of one slide: its genes and gene sets, with intervals from its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.gene_sets import columns_of_sets
from stflow_graph.io.prediction_file import PredictionFile
from stflow_graph.stats.ensembles import intervals
from stflow_graph.stats.metrics import is_constant, morans_i, neighbour_mean
from stflow_graph.summary.reference import PROBABILITIES, Quantiles, stored_quantiles

LEVEL = 0.8
SHARES = [f"share_above_q{round(100 * p)}" for p in PROBABILITIES]
_GROUP_BYTES = 2**28  # of values in memory
_MORAN_VALUES = 2**23  # of which float64 copies are
_MAX_AT_ONE_PLACE = 1000  # every one would be a neighbour of every other


@dataclasses.dataclass(frozen=True)
class SlideSummary:
    """The numbers of a slide.

    Attributes:
        slide: its name.
        n_spots: number of its spots.
        n_measured: of those, with measured values that informed the others.
        n_samples: S, 0 without samples.
        genes: a row a gene: gene, mean, lower, upper, std, share_zero, morans_i,
            expected_pearson, and shares above quantiles of a reference.
        gene_sets: a row a set: gene_set, mean, lower, upper, n_present, n_genes.
        n_renamed: genes that match those of sets in another case or version.
    """

    slide: str
    n_spots: int
    n_measured: int
    n_samples: int
    genes: pd.DataFrame
    gene_sets: pd.DataFrame
    n_renamed: int

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of spots, genes and samples."""
        return {
            "n_spots": self.n_spots,
            "n_measured": self.n_measured,
            "n_genes": len(self.genes),
            "n_constant_genes": self.n_constant,
            "n_samples": self.n_samples,
        }

    @property
    def n_constant(self) -> int:
        """Number of genes whose expected expression is the same at all spots."""
        return int(self.genes["morans_i"].isna().sum())


def summarise_slide(
    file: PredictionFile, sets: Mapping[str, Sequence[str]], reference: Quantiles | None
) -> SlideSummary:
    """Summarise a slide, read in groups of genes and its samples in blocks of spots.

    The mean of a gene is that of its expected expression over the slide's spots. Its interval is
    of the means over the spots of each sample, which are drawn for the slide as a whole.

    Args:
        file: its prediction.
        sets: gene sets, name to genes.
        reference: quantiles for the shares; None takes those of the training slides that the
            prediction carries, if it does.

    Raises:
        BadInput: values that are not finite, or too many spots at one place.
    """
    _check_places(file)
    genes = pd.DataFrame({"gene": file.genes})
    samples = sample_means(file)
    of_genes = _mean_and_spread(file, reference or stored_quantiles(file))
    genes["mean"] = of_genes.pop("mean")
    genes["lower"], genes["upper"] = _interval(samples)
    genes = genes.assign(**of_genes)
    for share in SHARES:
        if share not in genes:
            genes[share] = np.nan
    expected = file.expected_pearson()
    genes["expected_pearson"] = np.nan if expected is None else expected
    order = ["gene", "mean", "lower", "upper", "std", "share_zero", "morans_i", "expected_pearson"]
    columns, n_renamed = columns_of_sets(sets, file.genes)
    return SlideSummary(
        file.slide,
        len(file),
        file.n_measured(),
        file.n_samples,
        genes[[*order, *SHARES]],
        _gene_set_table(sets, columns, genes["mean"].to_numpy(), samples),
        n_renamed,
    )


def sample_means(file: PredictionFile) -> np.ndarray:
    """Return the mean over the spots of each sample, ``[S, G]`` float64."""
    sums = np.zeros((file.n_samples, len(file.genes)))
    for i, row in enumerate(sums):
        for _, values in file.blocks(f"sample_{i}"):
            row += values.sum(axis=0, dtype=np.float64)
    return sums / len(file)


def _check_places(file: PredictionFile) -> None:
    _, counts = np.unique(file.coords, axis=0, return_counts=True)
    if counts.max() > _MAX_AT_ONE_PLACE:
        found = unquoted(f"{counts.max():,} spots at one place")
        raise BadInput(file.path, "obsm['spatial']", found, f"at most {_MAX_AT_ONE_PLACE:,}")


def _interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 80% interval of means ``[S, ...]``, NaN for fewer than two."""
    if len(samples) < 2:
        nothing = np.full(samples.shape[1:], np.nan)
        return nothing, nothing
    return intervals(samples, LEVEL)


def _mean_and_spread(file: PredictionFile, reference: Quantiles | None) -> dict[str, np.ndarray]:
    """Return what needs all spots of a gene: ``[G]`` of each column of the table."""
    step = max(1, _GROUP_BYTES // (4 * len(file)))
    neighbours = neighbour_mean(file.coords)
    thresholds = None if reference is None else reference.of(file.genes)
    parts = []
    for start in range(0, len(file.genes), step):
        columns = np.arange(start, min(start + step, len(file.genes)))
        values = file.columns(columns)
        part = _of_values(values, neighbours)
        if thresholds is not None:
            part |= _shares(values, thresholds[:, columns])
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_values(values: np.ndarray, neighbours: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Return the columns of the table for some genes, of which float64 copies are made in turn."""
    step = max(1, _MORAN_VALUES // len(values))
    parts = []
    for start in range(0, values.shape[1], step):
        some = values[:, start : start + step].astype(np.float64)
        std = np.where(is_constant(some), 0.0, some.std(axis=0))
        zero = (some == 0).mean(axis=0)
        parts.append((some.mean(axis=0), std, zero, morans_i(some, neighbours)))
    names = "mean", "std", "share_zero", "morans_i"
    return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))


def _shares(values: np.ndarray, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of spots above each threshold ``[Q, g]``, NaN where it is."""
    shares = {}
    for name, row in zip(SHARES, thresholds, strict=True):
        # in float32, as the values are: a rounded quantile must not make ties differ
        above = (values > row.astype(np.float32)).mean(axis=0)
        shares[name] = np.where(np.isnan(row), np.nan, above)
    return shares


def _gene_set_table(
    sets: Mapping[str, Sequence[str]],
    columns: Mapping[str, np.ndarray],
    means: np.ndarray,
    samples: np.ndarray,
) -> pd.DataFrame:
    rows = []
    for name, members in sets.items():
        there = columns[name]
        row = {"gene_set": name, "mean": np.nan, "lower": np.nan, "upper": np.nan}
        if len(there):
            row["mean"] = means[there].mean()
            row["lower"], row["upper"] = map(float, _interval(samples[:, there].mean(axis=1)))
        rows.append(row | {"n_present": len(there), "n_genes": len(members)})
    return pd.DataFrame(rows)
