from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stflow_graph.training.fold_result import FORMAT, FoldResult, history_csv
from stflow_graph.training.loop import EpochRecord

RECORD = EpochRecord(3, 0.25, 1 / 3, 0.5, 2, 0.625, 1.5)


def result(folder: Path) -> FoldResult:
    scores = np.array([0.5, np.nan])
    tested = {"S": scores, "T": scores[::-1]}
    best = [RECORD, RECORD]
    return FoldResult("D", 4, folder, best, 0.25, ["G0", "G1"], scores, tested, False, "p")


def test_a_result_is_read_as_it_was_written(tmp_path):
    written = result(tmp_path)
    written.save(inputs={"genes": "0" * 64}, epochs=80)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["format"] == FORMAT
    assert (content["inputs"], content["epochs"]) == ({"genes": "0" * 64}, 80)
    assert content["pearson"] == [0.5, None]
    read = FoldResult.from_json("D", 4, tmp_path, content)
    assert read.up_to_date
    for name in ("dataset", "fold", "folder", "best", "validation_pearson", "genes", "protocol"):
        assert getattr(read, name) == getattr(written, name), name
    np.testing.assert_array_equal(read.pearson, written.pearson)
    assert read.pearson.dtype == np.float64
    assert list(read.test_pearson) == ["S", "T"]
    np.testing.assert_array_equal(read.test_pearson["T"], [np.nan, 0.5])


def test_a_score_that_is_not_defined_is_null(tmp_path):
    undefined = FoldResult(**{**vars(result(tmp_path)), "validation_pearson": float("nan")})
    undefined.save(inputs={}, epochs=1)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["validation_pearson"] is None
    assert np.isnan(FoldResult.from_json("D", 4, tmp_path, content).validation_pearson)


def test_the_history_is_a_table_of_members_and_epochs():
    lines = history_csv([[RECORD], [RECORD, RECORD]]).split("\n")
    assert lines[0] == (
        "member,epoch,loss,validation_mse,validation_pearson,best_epoch,best_pearson,seconds"
    )
    assert lines[1] == "0,3,0.25,0.333333,0.5,2,0.625,1.5"
    assert [line.split(",")[0] for line in lines[2:]] == ["1", "1", ""]
    assert history_csv([]) == lines[0] + "\n"


def test_numbers_are_written_to_six_digits():
    (_, row, _) = history_csv([[RECORD]]).split("\n")
    assert float(row.split(",")[3]) == pytest.approx(1 / 3, abs=1e-6)
