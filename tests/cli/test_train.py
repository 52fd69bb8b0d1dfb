from __future__ import annotations

from types import SimpleNamespace

import pytest
from stflow_graph_cli.train import _hints

from stflow_graph.training.loop import EpochRecord


def result(*epochs):
    return SimpleNamespace(best=[EpochRecord(n, 0.0, 0.0, 0.0, n, 0.0, 0.0) for n in epochs])


@pytest.mark.parametrize(
    ("epochs", "members"),
    [((3, 9, 9, 4), "2 of 4 members"), ((9,), "1 of 1 member"), ((3, 9, 4, 4), ""), ((8,), "")],
)
def test_more_epochs_are_hinted_at_where_the_last_one_was_the_best(epochs, members):
    hints = _hints([result(*epochs)], 9)
    text = f"best epoch of {members} is the last: more epochs may help: --epochs 18"
    assert hints == ([text] if members else [])


def test_a_short_training_prints_the_hint(cli, cohort, tmp_path):
    roots = ["--source-dataroot", cohort.root, "--embed-dataroot", cohort.embeddings]
    small = ["--n-layers", 1, "--members", 1, "--n-neighbors", 4, "--folds", 0, "--epochs", 1]
    run = cli("train", *roots, "--encoder", "toy", "--out", tmp_path / "run", *small)
    assert (run.code, run.err) == (0, "")
    assert "best epoch of 1 of 1 member is the last: more epochs may help: --epochs 2" in run.out
