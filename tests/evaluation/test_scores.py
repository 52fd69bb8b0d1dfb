from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from stflow_graph.evaluation.output import as_csv
from stflow_graph.evaluation.records import CEILING, TRUE_MEAN, Evaluation, SlideEvaluation
from stflow_graph.evaluation.scores import score_slide
from stflow_graph.evaluation.table import make_table
from stflow_graph.stats.resampling import rng_for

N, G = 40, 4


def make_slide(name="A", genes=None, seed=0, **predictions):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(N, G))
    return SlideEvaluation(
        id=name,
        name=name,
        dataset="d",
        fold=0,
        target="log1p",
        genes=genes or [f"g{i}" for i in range(G)],
        barcodes=[f"b{i}" for i in range(N)],
        coords=rng.uniform(size=(N, 2)),
        um_per_px=None,
        truth=truth,
        truth_file=str(Path(__file__)),
        ceiling=np.full(G, 0.8),
        moran=np.zeros(G),
        n_predicted=N,
        held_out=True,
        predictions={
            k: truth + noise * rng.normal(size=(N, G)) for k, noise in predictions.items()
        },
        samples={},
        scores={},
        provenance={k: {} for k in predictions if k in ("graph", "transformer", "=cmd")},
    )


def table(*slides, n_bootstrap=100):
    for slide in slides:
        score_slide(slide)
    rows, best = make_table(slides, n_bootstrap, seed=0)
    return {row.name: row for row in rows}, best


def test_rows_are_models_then_baselines_then_references():
    slide = make_slide(
        **{"ridge": 1, TRUE_MEAN: 0.1, "darkness": 2, "graph": 0.5, "transformer": 3}
    )
    rows, best = table(slide)
    assert list(rows) == ["graph", "transformer", "ridge", "darkness", TRUE_MEAN, CEILING]
    assert best == "ridge"
    assert [r.kind for r in rows.values()] == ["model"] * 2 + ["baseline"] * 2 + ["reference"] * 2
    assert rows["graph"].difference > 0 > rows["transformer"].difference
    assert all(rows[name].difference is None for name in list(rows)[2:])


def test_means_are_over_slides_and_relative_to_the_ceiling():
    rows, best = table(make_slide("A", graph=1), make_slide("B", seed=1, graph=1))
    row = rows["graph"]
    assert row.mean == pytest.approx(np.mean([row.slides["A"], row.slides["B"]]))
    assert row.of_ceiling == pytest.approx(row.mean / 0.8)
    assert (best, row.difference, row.difference_interval) == (None, None, None)


def test_the_difference_of_like_predictions_is_sharper_than_their_scores():
    slide = make_slide(graph=1, ridge=1)
    slide.predictions["ridge"] = slide.predictions["graph"] + 1e-3 * slide.truth
    row = table(slide)[0]["graph"]
    width = row.interval[1] - row.interval[0]
    assert width > 0.05 > 10 * (row.difference_interval[1] - row.difference_interval[0])


def test_streams_are_keyed_by_seed_slide_and_purpose():
    first = [rng_for(*key).random() for key in ((0, "A", "x"), (0, "A", "x"), (0, "B", "x"))]
    assert first[0] == first[1] != first[2]
    assert rng_for(1, "A", "x").random() != first[0] != rng_for(0, "A", "y").random()


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\t=1"),
        ("\r=1\n", "\\r=1\\n"),
        ("\x1b[2J", "\\x1b[2J"),
        ("CD3-é", "CD3-é"),
    ],
)
def test_no_name_is_a_formula_or_breaks_a_row(name, cell):
    slide = make_slide(genes=[name, "a,b", 'c"d', "e"], **{"=cmd": 1})
    score_slide(slide)
    evaluation = Evaluation("log1p", [slide], [], None, [], 0, 0, Path("out"))
    rows = list(csv.reader(io.StringIO(as_csv(evaluation), newline="")))
    assert [row[2] for row in rows[1:]] == [cell, "a,b", 'c"d', "e"]
    assert {row[1] for row in rows[1:]} == {"'=cmd"}
    assert {len(row) for row in rows} == {len(rows[0])}
