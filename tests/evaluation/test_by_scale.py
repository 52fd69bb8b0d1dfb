from types import SimpleNamespace

import numpy as np
import pytest

from stflow_graph.evaluation.by_scale import COLUMNS, scale_rows
from stflow_graph.evaluation.records import Score
from stflow_graph.stats.ensembles import coverage
from stflow_graph.stats.scales import coverage_by_scale


def slide(n, seed):
    rng = np.random.default_rng(seed)
    truth, samples = rng.normal(size=(n, 3)), rng.normal(size=(9, n, 3))
    level = truth.mean(axis=0) + np.linspace(-1, 1, 9)[:, None, None]
    samples += level - samples.mean(axis=1, keepdims=True)
    by_scale = coverage_by_scale(samples, truth, rng.random((n, 2)))
    score = Score({}, {}, coverage(samples, truth), by_scale)
    return SimpleNamespace(scores={"graph": score, "ridge": Score({}, {}, [])})


def test_a_row_a_scale_with_means_over_the_slides_that_have_it():
    small, large = slide(20, 0), slide(40, 1)
    rows = {row.region: row for row in scale_rows([small, large], "graph")}
    assert list(rows) == ["1 spot", "9 spots", "25 spots", "slide"]
    assert {region: len(row.slides["coverage_80"]) for region, row in rows.items()} == {
        "1 spot": 2,
        "9 spots": 2,
        "25 spots": 1,
        "slide": 2,
    }
    for row in rows.values():
        assert row.means.keys() == row.slides.keys() == COLUMNS.keys()
    each = large.scores["graph"].by_scale
    part = next(p for p in each if p.spots == 25 and not p.gene_mean)
    mean = next(p for p in each if p.spots == 25 and p.gene_mean)
    assert rows["25 spots"].means == pytest.approx(
        {
            "coverage_50": part.raw[0].covered,
            "coverage_80": part.raw[1].covered,
            "coverage_90": part.raw[2].covered,
            "width_80": part.raw[1].width,
            "centred_80": part.centred[1].covered,
            "genes_80": mean.raw[1].covered,
        }
    )
    assert rows["slide"].means["coverage_80"] == 1  # the slide's level is the samples' median
    assert np.isnan(rows["slide"].means["centred_80"])


def test_a_model_without_samples_has_no_rows():
    assert scale_rows([slide(20, 0)], "ridge") == []
    assert scale_rows([slide(20, 0)], "absent") == []
