"""Quantiles of the expected expression of reference slides: of training, or others'."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from stflow_graph.io.prediction_file import PredictionFile, open_prediction
from stflow_graph.summary.cohort import Source

PROBABILITIES = (0.5, 0.9)
_GROUP_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Quantiles:
    """Quantiles of genes.

    Attributes:
        columns: gene to its column.
        values: ``[Q, G]`` for :data:`PROBABILITIES`.
    """

    columns: dict[str, int]
    values: np.ndarray

    def of(self, genes: Sequence[str]) -> np.ndarray:
        """Return the quantiles ``[Q, g]`` of genes, NaN for those that the reference lacks."""
        result = np.full((len(PROBABILITIES), len(genes)), np.nan)
        for i, gene in enumerate(genes):
            if (column := self.columns.get(gene)) is not None:
                result[:, i] = self.values[:, column]
        return result


def reference_quantiles(sources: Sequence[Source]) -> Quantiles:
    """Return the quantiles of each gene over all spots of the slides that have it.

    They are exact; as many genes are read at a time as a quarter of a gigabyte holds.

    Args:
        sources: the slides' predictions, at least one.
    """
    columns: dict[str, int] = {}
    n_spots = 0
    for source in sources:
        with open_prediction(source.path) as file:
            n_spots += len(file)
            for gene in file.genes:
                columns.setdefault(gene, len(columns))
    names, step = list(columns), max(1, _GROUP_BYTES // (4 * n_spots))
    groups = [names[i : i + step] for i in range(0, len(names), step)]
    return Quantiles(columns, np.concatenate([_quantiles(sources, g) for g in groups], axis=1))


def stored_quantiles(file: PredictionFile) -> Quantiles | None:
    """Return the training slides' quantiles that a prediction carries, None if it has none."""
    stored = file.training_quantiles()
    if stored is None:
        return None
    values, levels = stored
    at = [[np.interp(p, levels, row) for row in values] for p in PROBABILITIES]
    return Quantiles({gene: i for i, gene in enumerate(file.genes)}, np.array(at))


def _quantiles(sources: Sequence[Source], genes: Sequence[str]) -> np.ndarray:
    """Return the quantiles ``[Q, g]`` of some genes."""
    parts: list[list[np.ndarray]] = [[] for _ in genes]
    for source in sources:
        with open_prediction(source.path) as file:
            place = {gene: i for i, gene in enumerate(file.genes)}
            there = [i for i, gene in enumerate(genes) if gene in place]
            if there:
                values = file.columns(np.array([place[genes[i]] for i in there]))
                for i, column in zip(there, values.T, strict=True):
                    parts[i].append(column)
    result = [np.quantile(np.concatenate(part), PROBABILITIES) for part in parts]
    return np.stack(result, axis=1)
