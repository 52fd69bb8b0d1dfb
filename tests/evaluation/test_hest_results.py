from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import pearsonr

from stflow_graph.evaluation.hest_results import (
    results_datasets,
    results_encoders,
    results_fold,
    results_kfold,
)


def test_a_folds_results_are_what_hests_code_computes():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 4))
    predicted = truth + rng.normal(size=(40, 4))
    result = results_fold(list("ABCD"), predicted, truth)
    pearson = [pearsonr(t, p)[0] for t, p in zip(truth.T, predicted.T, strict=True)]
    errors = ((predicted - truth) ** 2).mean(0)
    r2 = 1 - ((truth - predicted) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)
    assert [gene["name"] for gene in result["pearson_corrs"]] == list("ABCD")
    np.testing.assert_allclose([g["pearson_corr"] for g in result["pearson_corrs"]], pearson)
    np.testing.assert_allclose(result["l2_errors"], errors)
    np.testing.assert_allclose(result["r2_scores"], r2)
    assert result["pearson_mean"] == pytest.approx(np.mean(pearson))
    assert result["pearson_std"] == pytest.approx(np.std(pearson))
    assert result["l2_error_q1"] == pytest.approx(np.percentile(errors, 25))
    assert result["l2_error_q2"] == pytest.approx(np.median(errors))
    assert result["r2_score_q3"] == pytest.approx(np.percentile(r2, 75))


def test_a_constant_gene_is_null_and_left_out_of_the_means():
    truth = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]])
    result = results_fold(["flat", "good"], truth + 1, truth)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["pearson_corrs"][0] == {"name": "flat", "pearson_corr": None}
    assert result["r2_scores"][0] is None
    assert result["pearson_mean"] == pytest.approx(1)


def test_results_kfold_has_hests_form_and_no_nan():
    folds = [{"A": 0.2, "B": np.nan, "C": 0.5}, {"A": 0.4, "B": np.nan, "D": 0.2}]
    result = results_kfold(folds)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [entry["name"] for entry in result["pearson_corrs"]] == ["A", "B", "C", "D"]
    a, b, c, d = result["pearson_corrs"]
    assert a["pearson_corrs"] == [0.2, 0.4]
    assert (a["mean"], a["std"]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert b == {"name": "B", "pearson_corrs": [None, None], "mean": None, "std": None}
    assert (c["pearson_corrs"], c["mean"], c["std"]) == ([0.5, None], 0.5, 0.0)
    assert d["pearson_corrs"] == [None, 0.2]
    assert result["mean_per_split"] == [pytest.approx(0.35), pytest.approx(0.3)]
    assert result["pearson_mean"] == pytest.approx(0.325)
    assert result["pearson_std"] == pytest.approx(0.025)
    empty = results_kfold([{"A": np.nan}])
    assert (empty["pearson_mean"], empty["mean_per_split"]) == (None, [None])


def test_encoders_are_ordered_by_their_score_and_averaged_where_all_data_sets_have_one():
    scores = {
        "D1": {"low": (0.1, 0.0), "high": (0.3, 0.1), "undefined": (np.nan, np.nan)},
        "D2": {"high": (0.5, 0.2), "low": (0.3, 0.0)},
    }
    assert results_encoders(scores["D1"])["results"] == [
        {"encoder_name": "high", "pearson_mean": 0.3, "pearson_std": 0.1},
        {"encoder_name": "low", "pearson_mean": 0.1, "pearson_std": 0.0},
        {"encoder_name": "undefined", "pearson_mean": None, "pearson_std": None},
    ]
    result = results_datasets(scores)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [row["dataset_name"] for row in result["results"]] == ["D1", "D2"]
    assert result["results"][0]["results"] == results_encoders(scores["D1"])["results"]
    assert list(result["average"].items()) == [
        ("high", pytest.approx(0.4)),
        ("low", pytest.approx(0.2)),
    ]
