"""Results in the form of HEST-bench's JSON files, readable by code written for its results.

Undefined values, such as the correlation of a constant gene, are None (``null``); HEST's own code
writes ``NaN``, which is not JSON.

Source: Jaume et al., HEST-1k, NeurIPS 2024, and its ``hest/bench``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stflow_graph.stats.metrics import (
    mean_of_defined,
    mse_per_gene,
    none_if_nan,
    pearson_per_gene,
    quantile_of_defined,
    r2_per_gene,
    std_of_defined,
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
        "pearson_std": none_if_nan(std_of_defined(pearson)),
        **_quartiles("l2_error", errors),
        **_quartiles("r2_score", r2),
    }


def _quartiles(metric: str, values: np.ndarray) -> dict[str, float | None]:
    return {
        f"{metric}_{name}": none_if_nan(quantile_of_defined(values, probability))
        for name, probability in _QUARTILES.items()
    }


def results_kfold(folds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the correlations of all folds, ``results_kfold.json``.

    Means and (population) standard deviations are over the folds where a gene has a correlation; a
    fold's mean is over its genes that have one.

    Args:
        folds: the correlation of each gene in each fold, NaN where undefined; folds may differ in
            their genes.
    """
    table = pd.DataFrame(folds).astype(float)  # a row a fold, a column a gene
    means = np.array([mean_of_defined(row) for row in table.to_numpy()])
    return {
        "pearson_corrs": [
            {
                "name": gene,
                "pearson_corrs": [none_if_nan(value) for value in column],
                "mean": none_if_nan(mean_of_defined(column)),
                "std": none_if_nan(std_of_defined(column)),
            }
            for gene, column in table.items()
        ],
        "pearson_mean": none_if_nan(mean_of_defined(means)),
        "pearson_std": none_if_nan(std_of_defined(means)),
        "mean_per_split": [none_if_nan(value) for value in means],
    }


def results_encoders(scores: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the encoders of one data set, best first, ``enc_results.json``.

    Args:
        scores: mean and standard deviation over folds, by encoder.
    """
    return {
        "results": [
            {
                "encoder_name": name,
                "pearson_mean": none_if_nan(scores[name][0]),
                "pearson_std": none_if_nan(scores[name][1]),
            }
            for name in _best_first({name: mean for name, (mean, _) in scores.items()})
        ]
    }


def results_datasets(scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    """Return all data sets and the encoders' averages over them, ``dataset_results.json``.

    Args:
        scores: the argument of :func:`results_encoders`, by data set.
    """
    averages = average_encoders(scores)
    return {
        "results": [
            {"dataset_name": name, **results_encoders(of_encoders)}
            for name, of_encoders in scores.items()
        ],
        "average": {name: none_if_nan(averages[name]) for name in _best_first(averages)},
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


def _best_first(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda name: np.nan_to_num(scores[name], nan=-np.inf), reverse=True)
