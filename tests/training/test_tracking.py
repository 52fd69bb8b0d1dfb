from __future__ import annotations

import errno
import logging
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from stflow_graph.errors import StorageFailed
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


BROKEN = (
    ImportError("cannot import name 'Mapping'"),
    TypeError("Descriptors cannot be created directly"),
    AttributeError("module 'numpy' has no attribute 'bool8'"),
    OSError(errno.EIO, "Input/output error"),
    RuntimeError("any\nother"),
)


@pytest.mark.parametrize("part", ["construct", "add_scalar"])
@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_tensorboard_that_does_not_work_is_one_warning(
    tmp_path, monkeypatch, caplog, error, part
):
    def writer(folder):
        if part == "construct":
            raise error
        return SimpleNamespace(add_scalar=Mock(side_effect=error), close=Mock())

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    if part == "add_scalar" and isinstance(error, OSError):  # of the disk, as any other write
        with pytest.raises(StorageFailed), Trackers(tmp_path) as trackers:
            trackers.log(0, RECORD)
        return
    with Trackers(tmp_path) as trackers:
        for member in (0, 1, 0):
            trackers.log(member, RECORD)
    (record,) = caplog.records
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert record.getMessage() == f"no TensorBoard logs, training goes on: {text}"


def test_a_part_of_tensorboard_that_cannot_be_imported_is_one_warning(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    with Trackers(tmp_path) as trackers:
        trackers.log(0, RECORD)
        trackers.log(0, RECORD)
    (record,) = caplog.records
    assert "no TensorBoard logs, training goes on: ModuleNotFoundError" in record.getMessage()


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO), Trackers(tmp_path) as trackers:
        trackers.log(0, RECORD)
    assert "[tracking]" in caplog.text
    assert list(tmp_path.iterdir()) == []
