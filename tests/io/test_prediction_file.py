from __future__ import annotations

import numpy as np
import pytest
from artefacts import edit_h5, write_prediction

from stflow_graph.errors import BadInput
from stflow_graph.io import prediction_file
from stflow_graph.io.prediction_file import open_prediction
from stflow_graph.io.predictions import read_prediction

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(3, 50, 4)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    write_prediction(
        tmp_path / "A.h5ad",
        SAMPLES.mean(0),
        [f"s{i}" for i in range(50)],
        list("GHIJ"),
        RNG.uniform(0, 9, (50, 2)),
        provenance={"slide": "A", "target": "log1p"},
        samples=SAMPLES,
        expected_pearson=np.array([0.1, np.nan, 0.3, 0.4]),
        observed=(np.array([1, 5]), np.array([0])),
    )
    return tmp_path / "A.h5ad"


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_blocks_and_columns_are_the_whole(path, monkeypatch, rows):
    monkeypatch.setattr(prediction_file, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(prediction_file, "chunk_rows", lambda n_genes: rows)
    whole = read_prediction(path)
    with open_prediction(path) as file:
        parts = list(file.blocks())
        assert [part.start for part, _ in parts] == list(range(0, 50, rows))
        np.testing.assert_array_equal(np.concatenate([v for _, v in parts]), whole.mean)
        for i in range(3):
            columns = file.columns(np.array([2, 0]), f"sample_{i}")
            np.testing.assert_array_equal(columns, whole.samples[i][:, [2, 0]])
        assert (file.barcodes, file.genes, file.slide) == (whole.barcodes, whole.genes, "A")
        assert (len(file), file.n_samples, file.n_measured()) == (50, 3, 2)
        np.testing.assert_array_equal(file.coords, whole.coords)
        np.testing.assert_array_equal(file.expected_pearson(), whole.expected_pearson)
        assert file.provenance == whole.provenance


def read_all(path):
    with open_prediction(path) as file:
        list(file.blocks())
        file.expected_pearson()


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("X", lambda x: np.where(np.arange(200).reshape(50, 4) == 9, np.nan, x), "not finite"),
        ("X", lambda x: x[:, :2], "one of mean"),
        ("X", lambda x: x.astype("S8"), "numbers"),
        ("layers/sample_1", None, "3 samples|2 samples"),
        ("obsm/spatial", lambda x: x[:9], "9 rows"),
        ("obs/_index", lambda x: [b"s"] * 50, "duplicates"),
        ("var/expected_pearson", lambda x: x[:2], "a number for each gene"),
        ("uns/stflow_graph/provenance", "{}", "stflow-graph sample"),
    ],
)
def test_what_is_no_prediction_is_refused(path, key, change, message):
    edit_h5(path, key, change)
    with pytest.raises(BadInput, match=message):
        read_all(path)
