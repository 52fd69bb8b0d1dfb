from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stflow_graph.data.observed import read_observed
from stflow_graph.errors import BadInput

BARCODES = [f"b{i}" for i in range(10)]
GENES = ["A", "B", "C", "D"]
COORDS = np.arange(20.0).reshape(10, 2) * 100


def counts_of(rows, genes=("A", "B", "C", "D", "other", "else"), seed=0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    return anndata.AnnData(
        sp.csr_matrix(rng.integers(1, 9, (len(rows), len(genes))).astype(np.float32)),
        obs=pd.DataFrame(index=[f"b{i}" for i in rows]),
        var=pd.DataFrame(index=list(genes)),
    )


def read(source, **options):
    options = {"slide": "S.h5", **options}
    return read_observed(source, BARCODES, COORDS, GENES, **options)


def test_spots_and_genes_are_matched_by_name(tmp_path):
    adata = counts_of([7, 2, 4], ["D", "else", "B"])
    adata.write_h5ad(tmp_path / "part.h5ad")
    for source in (adata, tmp_path / "part.h5ad", str(tmp_path / "part.h5ad")):
        found = read(source)
        assert (found.rows.tolist(), found.genes.tolist()) == ([2, 4, 7], [1, 3])
        expected = np.log1p(adata[["b2", "b4", "b7"], ["B", "D"]].X.toarray())
        np.testing.assert_allclose(found.values, expected)


def test_a_normalised_target_takes_the_counts_of_all_genes():
    adata = counts_of([1, 3])
    total = np.asarray(adata.X.sum(1)).ravel()
    counts = adata[:, GENES].X.toarray()
    found = read(adata, target="log1p_normalised").values
    np.testing.assert_allclose(found, np.log1p(1e4 * counts / total[:, None]), rtol=1e-6)
    few = adata[:, GENES].copy()
    with pytest.raises(BadInput, match=r"observed: obs: found 4 genes and no 'total_counts'.*Fix:"):
        read(few, target="log1p_normalised")
    few.obs["total_counts"] = total
    np.testing.assert_array_equal(read(few, target="log1p_normalised").values, found)
    for wrong, message in (
        (-total, "2 values not finite or below the counts in X"),
        ([np.nan, 1e4], "1 values not finite"),
        (["a", "b"], "'object'"),
    ):
        few.obs["total_counts"] = wrong
        with pytest.raises(BadInput, match=rf"obs\['total_counts'\]: found {message}"):
            read(few, target="log1p_normalised")


def test_spots_elsewhere_are_left_out_with_a_warning(caplog):
    adata = counts_of([0, 1, 2, 99])
    assert read(adata).rows.tolist() == [0, 1, 2]
    assert "1 spots are not on the slide" in caplog.text


def test_spots_that_lie_elsewhere_are_of_another_slide(caplog):
    adata = counts_of([0, 1, 2, 3])
    for rounded in (0, 1.5):
        adata.obsm["spatial"] = COORDS[:4] + rounded
        assert read(adata).rows.tolist() == [0, 1, 2, 3]
    assert not caplog.records
    adata.obsm["spatial"] = COORDS[[0, 1, 2, 9]]
    with pytest.raises(BadInput, match=r"obsm\['spatial'\]: found 1 of 4 spots up to .*Fix:"):
        read(adata)
    del adata.obsm["spatial"]
    assert read(adata).rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["float16", "int64", "dense", "backed"])
def test_counts_of_any_number_type(kind, tmp_path):
    adata = counts_of([2, 5])
    expected = read(adata).values
    if kind == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    else:
        dense = adata.X.toarray().astype("float32" if kind == "dense" else kind)
        adata = anndata.AnnData(dense, adata.obs, adata.var)
    np.testing.assert_array_equal(read(adata).values, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: counts_of(range(10)), r"observed: found all 10 spots with all 4 genes"),
        (lambda a: counts_of([50, 51, 52]), r"S.h5: barcodes: found 0 of 10 barcodes in observed"),
        (
            lambda a: counts_of([1, 2], ["x", "y"]),
            r"observed: var_names: found 4 of 4 genes absent",
        ),
        (lambda a: anndata.AnnData(-a.X, a.obs, a.var), r"observed: X: found .* negative"),
        (lambda a: anndata.AnnData(a.X * 0.3, a.obs, a.var), r"observed: X: found .* not whole"),
        (lambda a: anndata.AnnData(a.X * 1e13, a.obs, a.var), r"X: found .* too large for counts"),
        (lambda a: counts_of([1, 1, 2]), r"observed: obs_names: "),
        (lambda a: counts_of([]), r"observed: obs_names: found 0 spots"),
    ],
)
@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_files_that_cannot_be_used(change, message):
    with pytest.raises(BadInput, match=message) as info:
        read(change(counts_of([1, 2])))
    assert "\n" not in str(info.value)


def test_all_spots_of_some_genes_leave_something_to_predict():
    found = read(counts_of(range(10), ["A", "C"]))
    assert (len(found.rows), found.genes.tolist()) == (10, [0, 2])


def test_no_such_file():
    with pytest.raises(BadInput, match=r"nothing.h5ad: file: found"):
        read(Path("nothing.h5ad"))
