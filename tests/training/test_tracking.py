from __future__ import annotations

import logging

import pytest

from stflow_graph.training import tracking
from stflow_graph.training.loop import EpochRecord
from stflow_graph.training.tracking import Trackers

RECORD = EpochRecord(3, 0.25, 0.75, 0.5, 2, 0.625, 1.5)


def test_each_member_has_a_log_with_its_scores(tmp_path):
    pytest.importorskip("tensorboard", reason="needs pip install .[tracking]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(tmp_path) as trackers:
        trackers.log(0, RECORD)
        trackers.log(1, RECORD)
        trackers.log(1, EpochRecord(4, 0.125, 0.75, 0.5, 2, 0.625, 1.5))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["member0", "member1"]
    log = EventAccumulator(str(tmp_path / "member1"))
    log.Reload()
    expected = {
        "train/loss": [(3, 0.25), (4, 0.125)],
        "validation/mse": [(3, 0.75), (4, 0.75)],
        "validation/pearson": [(3, 0.5), (4, 0.5)],
    }
    assert set(log.Tags()["scalars"]) == set(expected)
    for tag, values in expected.items():
        assert [(event.step, event.value) for event in log.Scalars(tag)] == values
    assert len(list((tmp_path / "member1").iterdir())) == 1


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO), Trackers(tmp_path) as trackers:
        trackers.log(0, RECORD)
    assert "[tracking]" in caplog.text
    assert list(tmp_path.iterdir()) == []
