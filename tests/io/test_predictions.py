import errno
import os

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from artefacts import resealed, write_prediction

from stflow_graph.errors import BadInput, StorageFailed
from stflow_graph.io.expression import write_expression
from stflow_graph.io.predictions import (
    Block,
    chunk_rows,
    read_prediction,
    read_provenance,
    write_prediction_blocks,
)

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(3, 4, 2)).astype(np.float32)
PROVENANCE = {"slide": "A1", "target": "log1p", "fold": None, "train_slides": ["B", "C"]}


def write(path, samples=SAMPLES, provenance=PROVENANCE):
    write_prediction(
        path,
        samples.mean(0),
        list("abcd"),
        ["G1", "G2"],
        np.arange(8).reshape(4, 2),
        provenance=provenance,
        samples=samples,
    )
    return path


def test_what_is_written_is_read(tmp_path):
    result = read_prediction(write(tmp_path / "a.h5ad"))
    np.testing.assert_allclose(result.mean, SAMPLES.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(result.samples, SAMPLES)
    np.testing.assert_array_equal(result.coords, np.arange(8).reshape(4, 2))
    assert (result.barcodes, result.genes, result.slide) == (list("abcd"), ["G1", "G2"], "A1")
    assert {key: result.provenance[key] for key in PROVENANCE} == PROVENANCE


def test_anndata_opens_it_with_the_deviation_of_the_samples(tmp_path):
    adata = anndata.read_h5ad(write(tmp_path / "a.h5ad"))
    assert adata.X.dtype == np.float32
    np.testing.assert_allclose(adata.layers["std"], SAMPLES.std(0), rtol=1e-5)


def test_the_same_data_give_the_same_bytes(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")
    assert a.read_bytes() == b.read_bytes()


def blocks(*ends: int):
    """Give the prediction in blocks that end there."""
    start = 0
    for end in ends:
        rows = slice(start, end)
        yield Block(rows, SAMPLES.mean(0)[rows], SAMPLES[:, rows])
        start = end


def write_blocks(path, given):
    names, genes, coords = list("abcd"), ["G1", "G2"], np.arange(8).reshape(4, 2)
    write_prediction_blocks(path, given, names, genes, coords, provenance=PROVENANCE, n_samples=3)


def test_blocks_give_the_file_that_the_whole_gives(tmp_path):
    write_blocks(tmp_path / "b.h5ad", blocks(1, 3, 4))
    whole, result = (
        read_prediction(write(tmp_path / "a.h5ad")),
        read_prediction(tmp_path / "b.h5ad"),
    )
    np.testing.assert_array_equal(result.mean, whole.mean)
    np.testing.assert_array_equal(result.samples, whole.samples)
    assert read_provenance(tmp_path / "b.h5ad") == whole.provenance
    assert chunk_rows(50) * 50 * 4 <= 2**20 < (chunk_rows(50) + 1) * 50 * 4
    assert chunk_rows(10**7) == 1


def test_blocks_that_end_early_or_fail_leave_what_was_there(tmp_path):
    path = tmp_path / "a.h5ad"
    with pytest.raises(ValueError, match="3 of 4 rows"):
        write_blocks(path, blocks(1, 3))
    assert list(tmp_path.iterdir()) == []
    before = write(path).read_bytes()

    def unreadable():
        yield from blocks(2)
        raise OSError(errno.EIO, "Input/output error", "input.h5")

    with pytest.raises(OSError, match="input.h5"):
        write_blocks(path, unreadable())
    assert path.read_bytes() == before


def test_a_failed_write_ends_the_work_at_its_block(tmp_path, monkeypatch):
    path, n_blocks = tmp_path / "a.h5ad", 0
    before = write(path).read_bytes()

    def counted():
        nonlocal n_blocks
        for block in blocks(1, 2):
            if n_blocks == 1:
                monkeypatch.setattr(os, "pwrite", fail)
            n_blocks += 1
            yield block

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFailed, match=r"a\.h5ad: cannot write: No space left on device\. No"):
        write_blocks(path, counted())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        write(tmp_path / "a.h5ad", SAMPLES * np.nan)
    with pytest.raises(ValueError, match="slide and target"):
        write(tmp_path / "a.h5ad", provenance={"slide": "A1"})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_prediction_is_refused(tmp_path):
    path = tmp_path / "a.h5ad"
    write_expression(path, sp.eye(3), list("abc"), list("xyz"), np.eye(3, 2), um_per_px=1.0)
    with pytest.raises(BadInput, match=r"uns.*um_per_px.*stflow-graph sample"):
        read_prediction(path)
    with pytest.raises(BadInput, match=r"uns.*no keys.*stflow-graph sample"):
        read_provenance(path)


def _renamed(file):
    file["layers"].move("sample_1", "sample_01")


def _replaced(name, value):
    def change(file):
        attributes = dict(file[name].attrs) if name in file else {}
        if name in file:
            del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


def _with_expected(value):
    def change(file):
        _replaced("var/expected_pearson", value)(file)
        file["var/expected_pearson"].attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
        file["var"].attrs["column-order"] = np.array(["expected_pearson"], object)

    return change


PLACE = "uns/stflow_graph/provenance"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed, r"layers: found .*'sample_01'.* expected 3 samples from sample_0 on"),
        (_with_expected(np.array(["x", ""], "S1")), "expected_pearson"),
        (_replaced("layers/sample_0", np.array([["x", ""]] * 4, "S1")), "sample_0: found"),
        (_replaced("X", np.array([["x", ""]] * 4, "S1")), "X: found"),
        (_replaced(PLACE, h5py.Empty("f")), "provenance"),
        (_replaced(PLACE, 3), "provenance"),
        (_replaced(PLACE, "[]"), "provenance"),
    ],
)
def test_what_others_made_of_a_prediction_is_refused_in_one_line(tmp_path, change, message):
    path = write(tmp_path / "a.h5ad")
    with resealed(path) as file:
        change(file)
    with pytest.raises(BadInput, match=f"{message}|expected an .h5ad that anndata can read"):
        read_prediction(path)
    if message == "provenance":
        with pytest.raises(BadInput, match=message):
            read_provenance(path)
    else:
        assert read_provenance(path)["slide"] == "A1"
