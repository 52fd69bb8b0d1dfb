from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from stflow_graph.errors import BadInput
from stflow_graph.io.expression import TRUE_MEAN, read_expression, write_expression

COUNTS = np.array([[0, 1, 2], [3, 0, 0], [0, 0, 0]], dtype=np.float32)
GENES = ["ERBB2", "ACTB", "MGP"]
BARCODES = ["1x1", "1x2", "1x3"]


def write(path, counts=COUNTS, barcodes=BARCODES, genes=GENES, **extra):
    write_expression(
        path, sp.csr_matrix(counts), barcodes, genes, np.eye(3, 2), um_per_px=0.5, **extra
    )
    return path


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path / "a.h5ad", layers={TRUE_MEAN: COUNTS / 2})
    found = read_expression(path)
    np.testing.assert_array_equal(found.counts.toarray(), COUNTS)
    assert (found.barcodes, found.genes, found.um_per_px) == (BARCODES, GENES, 0.5)
    np.testing.assert_array_equal(found.total, [3, 3, 0])
    np.testing.assert_array_equal(found.coords, np.eye(3, 2))
    np.testing.assert_array_equal(found.true_mean, COUNTS / 2)


def test_genes_come_in_the_order_asked_for_and_totals_over_all(tmp_path):
    found = read_expression(write(tmp_path / "a.h5ad"), ["MGP", "ERBB2"])
    np.testing.assert_array_equal(found.counts.toarray(), COUNTS[:, [2, 0]])
    np.testing.assert_array_equal(found.total, [3, 3, 0])


def test_dense_and_csc_files_are_read_alike(tmp_path):
    import anndata

    for i, matrix in enumerate((COUNTS, sp.csc_matrix(COUNTS), COUNTS.astype(np.int64))):
        path = tmp_path / f"{i}.h5ad"
        anndata.AnnData(matrix).write_h5ad(path)
        np.testing.assert_array_equal(read_expression(path).counts.toarray(), COUNTS)


def test_the_same_data_give_the_same_bytes(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": COUNTS - 1}, "negative.*raw counts"),
        ({"counts": np.log1p(COUNTS)}, "not whole"),
        ({"counts": np.where(COUNTS > 1, np.inf, COUNTS)}, "not finite"),
        ({"genes": ["A", "A", "B"]}, "var_names.*duplicates"),
        ({"barcodes": ["A", "A", "B"]}, "obs_names.*duplicates"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique", "ignore:invalid value")
def test_bad_counts_are_refused(tmp_path, change, message):
    path = write(tmp_path / "a.h5ad", **change)
    with pytest.raises(BadInput, match=message):
        read_expression(path)


def test_absent_genes_are_counted_and_three_shown(tmp_path):
    path = write(tmp_path / "a.h5ad")
    with pytest.raises(BadInput, match=r"4 of 5 genes absent, such as \['A', 'B', 'C'\]"):
        read_expression(path, ["A", "B", "C", "D", "ACTB"])


@pytest.mark.parametrize("key", ["indices", "indptr"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_sparse_indices_out_of_range_are_refused_not_followed(tmp_path, key, value):
    path = write(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["X"][key][1] = value
    with pytest.raises(BadInput):
        read_expression(path)


def test_other_hdf5_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["img"] = np.zeros(3)
    with pytest.raises(BadInput, match="'img'.*X, obs and var"):
        read_expression(tmp_path / "a.h5ad")


def test_positions_of_another_shape_are_refused(tmp_path):
    path = write(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]
        file["obsm/spatial"] = np.zeros((3, 3))
        file["obsm/spatial"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(BadInput, match=r"obsm\['spatial'\].*\(3, 3\)"):
        read_expression(path)
