import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from artefacts import edit_h5, resealed

from stflow_graph.errors import BadInput
from stflow_graph.io.expression import TRUE_MEAN, read_expression, write_expression
from stflow_graph.io.gene_names import GeneMatching

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
    result = read_expression(path)
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS)
    assert (result.barcodes, result.genes, result.um_per_px) == (BARCODES, GENES, 0.5)
    np.testing.assert_array_equal(result.total, [3, 3, 0])
    np.testing.assert_array_equal(result.coords, np.eye(3, 2))
    np.testing.assert_array_equal(result.true_mean, COUNTS / 2)


def test_genes_come_in_the_order_asked_for_and_totals_over_all(tmp_path):
    result = read_expression(write(tmp_path / "a.h5ad"), ["MGP", "ERBB2"])
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS[:, [2, 0]])
    np.testing.assert_array_equal(result.total, [3, 3, 0])


def test_dense_and_csc_files_are_read_alike(tmp_path):
    import anndata

    for i, matrix in enumerate((COUNTS, sp.csc_matrix(COUNTS), COUNTS.astype(np.int64))):
        path = tmp_path / f"{i}.h5ad"
        anndata.AnnData(matrix).write_h5ad(path)
        np.testing.assert_array_equal(read_expression(path).counts.toarray(), COUNTS)


def test_counts_of_16_bits_are_read_or_refused_with_a_fix(tmp_path):
    import anndata

    path, largest = tmp_path / "a.h5ad", np.where(COUNTS == 3, 2047, COUNTS)
    anndata.AnnData(largest.astype(np.float16)).write_h5ad(path)
    np.testing.assert_array_equal(read_expression(path).counts.toarray(), largest)
    anndata.AnnData(sp.csr_matrix(COUNTS)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        half = file["X/data"][:].astype(np.float16)
        del file["X/data"]
        file["X/data"] = half
    with pytest.raises(BadInput, match="X: found float16.*float32"):
        read_expression(path)


def test_the_same_data_give_the_same_bytes(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": COUNTS - 1}, "negative.*raw counts"),
        ({"counts": np.log1p(COUNTS)}, "not whole"),
        ({"counts": np.where(COUNTS > 1, np.inf, COUNTS)}, "not finite"),
        ({"genes": ["A", "A", "B"]}, "var_names.*duplicate"),
        ({"barcodes": ["A", "A", "B"]}, "obs_names.*duplicate"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*names are not unique", "ignore:invalid value")
def test_bad_counts_are_refused(tmp_path, change, message):
    path = write(tmp_path / "a.h5ad", **change)
    with pytest.raises(BadInput, match=message):
        read_expression(path)


def test_absent_genes_are_counted_and_five_shown(tmp_path):
    path = write(tmp_path / "a.h5ad")
    with pytest.raises(BadInput, match=r"6 of 7 genes absent, such as \['A', 'B', 'C', 'D', 'E'\]"):
        read_expression(path, [*"ABCDEF", "ACTB"])
    result = read_expression(path, ["MGP", "A"], min_fraction=0.5)
    assert (result.genes, result.absent) == (["MGP"], ["A"])
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS[:, [2]])


@pytest.mark.parametrize("key", ["indices", "indptr"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_sparse_indices_out_of_range_are_refused_not_followed(tmp_path, key, value):
    path = write(tmp_path / "a.h5ad")
    with resealed(path) as file:
        file["X"][key][1] = value
    with pytest.raises(BadInput, match="X: found .*expected valid sparse indices"):
        read_expression(path)


def test_pointers_to_values_that_are_not_there_are_refused(tmp_path):
    """Scipy's own check looks at the last one, and at the others only if there are values."""
    path = write(tmp_path / "a.h5ad")
    with resealed(path) as file:
        group = file["X"]
        group["indptr"][-1] = 0
        for key in ("indices", "data"):
            values = group[key][:0]
            del group[key]
            group[key] = values
    with pytest.raises(BadInput, match="pointers that decrease"):
        read_expression(path)


def test_other_hdf5_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["img"] = np.zeros(3)
    with pytest.raises(BadInput, match="'img'.*X, obs and var"):
        read_expression(tmp_path / "a.h5ad")


def test_positions_of_another_shape_are_refused(tmp_path):
    path = write(tmp_path / "a.h5ad")
    edit_h5(path, "obsm/spatial", np.zeros((3, 3)))
    with pytest.raises(BadInput, match=r"obsm\['spatial'\].*\(3, 3\)"):
        read_expression(path)


IDS = ["ENSG00000141736.4", "ENSG00000075624.17", "ENSG00000111341.9"]


@pytest.mark.parametrize("column", ["gene_ids", "gene_name", "feature_name", "SYMBOL"])
def test_var_may_hold_the_other_names(tmp_path, column):
    by_symbol = column == "gene_ids"
    names, others = (GENES, IDS) if by_symbol else (IDS, GENES)
    path = write(tmp_path / "a.h5ad", genes=names, var={column: others})
    requested = [others[2], others[0]]
    result = read_expression(path, requested)
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS[:, [2, 0]])
    assert result.genes == requested
    assert result.matched == f"2 of 2 genes matched by {'Ensembl ID' if by_symbol else 'symbol'}"
    assert read_expression(path, [names[1]]).matched == ""


def test_other_names_may_be_categories_with_gaps(tmp_path):
    var = {"gene_name": pd.Categorical(["ERBB2", None, "MGP"])}
    path = write(tmp_path / "a.h5ad", genes=IDS, var=var)
    assert read_expression(path, ["MGP"]).counts.sum() == 2
    with pytest.raises(BadInput, match=r"1 of 2 genes absent, such as \['ACTB'\]"):
        read_expression(path, ["MGP", "ACTB"])


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_a_gene_that_stands_twice_is_summed_or_taken_first_if_that_is_asked_for(tmp_path):
    path = write(tmp_path / "a.h5ad", genes=["A", "B", "A"], layers={TRUE_MEAN: COUNTS / 2})
    np.testing.assert_array_equal(read_expression(path, ["B"]).counts.toarray(), COUNTS[:, [1]])
    with pytest.raises(BadInput, match=r"var_names.*1 duplicate among .*\['A'\]"):
        read_expression(path, ["B", "A"])
    summed = COUNTS[:, [0, 1]] + COUNTS[:, [2]] * [1, 0]
    for genes in (None, ["A", "B"]):
        result = read_expression(path, genes, matching=GeneMatching({}, "sum"))
        np.testing.assert_array_equal(result.counts.toarray(), summed)
        assert result.counts.dtype == np.float32
        assert result.genes == ["A", "B"]
        assert result.true_mean is None  # a mean of logarithms cannot be summed
        result = read_expression(path, genes, matching=GeneMatching({}, "first"))
        np.testing.assert_array_equal(result.counts.toarray(), COUNTS[:, :2])
        np.testing.assert_array_equal(result.true_mean, COUNTS[:, :2] / 2)
        np.testing.assert_array_equal(result.total, COUNTS.sum(axis=1))
