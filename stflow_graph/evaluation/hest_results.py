"""Results in the form of HEST-bench's JSON files, so that code which reads its results reads ours.

What is not defined, such as the correlation of a constant gene, is None, ``null`` in JSON, where
HEST's own code would write ``NaN``, which is not JSON.

Source: Jaume et al., HEST-1k, NeurIPS 2024, and its ``hest/bench``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stflow_graph.stats.metrics import (
    mean_of_defined,
    mse_per_gene,
    none_if_nan,
    pearson_per_gene,
    r2_per_gene,
)

_QUARTILES = {"q1": 0.25, "q2": 0.5, "q3": 0.75}


def results_fold(genes: Sequence[str], predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return the scores of one fold, ``split<i>/results.json``.

    Args:
        genes: G names.
        predicted: ``[N, G]`` of all spots of all test slides.
        truth: ``[N, G]``.
    """
    pearson = pearson_per_gene(predicted, truth)
    errors, r2 = mse_per_gene(predicted, truth), r2_per_gene(predicted, truth)
    return {
        "l2_errors": [none_if_nan(value) for value in errors],
        "r2_scores": [none_if_nan(value) for value in r2],
        "pearson_corrs": [
            {"name": gene, "pearson_corr": none_if_nan(value)}
            for gene, value in zip(genes, pearson, strict=True)
        ],
        "pearson_mean": none_if_nan(mean_of_defined(pearson)),
        "pearson_std": none_if_nan(_std_of_defined(pearson)),
        **{f"l2_error_{name}": _quantile(errors, share) for name, share in _QUARTILES.items()},
        **{f"r2_score_{name}": _quantile(r2, share) for name, share in _QUARTILES.items()},
    }


def results_kfold(folds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the correlations of all folds, ``results_kfold.json``.

    Means and (population) standard deviations are over the folds where a gene has a correlation; a
    fold's mean is over its genes that have one.

    Args:
        folds: for each fold its genes' correlations, NaN where not defined; folds may differ in
            their genes.
    """
    genes = list(dict.fromkeys(gene for fold in folds for gene in fold))
    columns = {gene: np.array([fold.get(gene, np.nan) for fold in folds]) for gene in genes}
    means = np.array([mean_of_defined(np.array(list(fold.values()))) for fold in folds])
    return {
        "pearson_corrs": [
            {
                "name": gene,
                "pearson_corrs": [none_if_nan(value) for value in column],
                "mean": none_if_nan(mean_of_defined(column)),
                "std": none_if_nan(_std_of_defined(column)),
            }
            for gene, column in columns.items()
        ],
        "pearson_mean": none_if_nan(mean_of_defined(means)),
        "pearson_std": none_if_nan(_std_of_defined(means)),
        "mean_per_split": [none_if_nan(value) for value in means],
    }


def results_encoders(scores: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the encoders of one data set, best first, ``enc_results.json``.

    Args:
        scores: for each encoder the mean and the standard deviation over folds.
    """
    ordered = sorted(scores, key=lambda name: _ascending(scores[name][0]), reverse=True)
    return {
        "results": [
            {
                "encoder_name": name,
                "pearson_mean": none_if_nan(scores[name][0]),
                "pearson_std": none_if_nan(scores[name][1]),
            }
            for name in ordered
        ]
    }


def results_datasets(scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    """Return all data sets and the encoders' averages over them, ``dataset_results.json``.

    Args:
        scores: for each data set what :func:`results_encoders` takes.
    """
    averages = average_encoders(scores)
    ordered = sorted(averages, key=lambda name: _ascending(averages[name]), reverse=True)
    return {
        "results": [
            {"dataset_name": name, **results_encoders(of_encoders)}
            for name, of_encoders in scores.items()
        ],
        "average": {name: none_if_nan(averages[name]) for name in ordered},
    }


def average_encoders(
    scores: Mapping[str, Mapping[str, tuple[float, float]]],
) -> dict[str, float]:
    """Return each encoder's mean score over the data sets, if it has one on all of them."""
    encoders = dict.fromkeys(name for of_encoders in scores.values() for name in of_encoders)
    return {
        name: float(np.mean([of_encoders[name][0] for of_encoders in scores.values()]))
        for name in encoders
        if all(name in of_encoders for of_encoders in scores.values())
    }


def _ascending(value: float) -> float:
    return value if np.isfinite(value) else -np.inf


def _std_of_defined(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.std()) if len(defined) else float("nan")


def _quantile(values: np.ndarray, share: float) -> float | None:
    defined = values[np.isfinite(values)]
    return float(np.quantile(defined, share)) if len(defined) else None
