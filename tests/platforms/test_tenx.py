import contextlib
import gzip

import h5py
import numpy as np
import pytest
from artefacts import edit_h5
from platform_files import IDS, SYMBOLS, counts_of, write_tenx, write_tenx_folder, write_tenx_v2

from stflow_graph.errors import BadConfig, BadInput
from stflow_graph.platforms.tenx import read_tenx, software

BARCODES = ["ACGT-1", "GGGG-1", "CTAG-1", "TTTT-1"]
COUNTS = counts_of(4, seed=5)
GENES = ["ACTB", "GAPDH", "CD3E", "GAPDH-1", "MS4A1"]
LAYOUTS = {"v3": write_tenx, "v2": write_tenx_v2, "folder": write_tenx_folder}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [1, 3, 2**24])
def test_every_layout_gives_the_counts_that_were_written(tmp_path, monkeypatch, layout, block):
    monkeypatch.setattr("stflow_graph.platforms.tenx._BLOCK", block)
    result = read_tenx(LAYOUTS[layout](tmp_path / "m", COUNTS, BARCODES))
    # the old layout has no types, so nothing tells an antibody from a gene
    n = 6 if layout == "v2" else 5
    assert result.barcodes == BARCODES
    assert result.genes[:5] == GENES
    assert result.var == {"gene_ids": IDS[:n], "gene_symbols": SYMBOLS[:n]}
    assert result.counts.dtype == np.float32
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS[:, :n])
    np.testing.assert_array_equal(result.total, COUNTS[:, :n].sum(axis=1))
    assert result.counts.has_canonical_format


def test_ids_may_name_the_genes(tmp_path):
    path = write_tenx(tmp_path / "m.h5", COUNTS, BARCODES, software_version="spaceranger-2.1.0")
    result = read_tenx(path, "ids")
    assert result.genes == IDS[:5]
    assert result.var["gene_symbols"] == SYMBOLS[:5]
    assert software(path) == "spaceranger-2.1.0"
    with pytest.raises(BadConfig, match="expected symbols or ids"):
        read_tenx(path, "other")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore")  # of scanpy and what it imports, the oracle here
def test_scanpy_reads_the_same(tmp_path, layout):
    scanpy = pytest.importorskip("scanpy", reason="the oracle for 10x matrices")
    path = LAYOUTS[layout](tmp_path / "m", COUNTS, BARCODES)
    read = scanpy.read_10x_mtx if layout == "folder" else scanpy.read_10x_h5
    expected, result = read(path), read_tenx(path)
    expected.var_names_make_unique()
    assert list(expected.obs_names) == result.barcodes
    assert list(expected.var_names) == result.genes
    assert list(expected.var["gene_ids"]) == list(result.var["gene_ids"])
    np.testing.assert_array_equal(expected.X.toarray(), result.counts.toarray())


def _set(place, number):
    def change(values):
        values = values.copy()
        values[place] = number
        return values

    return change


def _a_feature_twice(path):
    with h5py.File(path, "r+") as file:
        starts, indices = file["matrix/indptr"][()], file["matrix/indices"]
        row = int(np.flatnonzero(np.diff(starts) > 1)[0])
        indices[starts[row] + 1] = indices[starts[row]]


def _of_two_genomes(path):
    with h5py.File(path, "r+") as file:
        file.move("matrix", "hg19")
        file["hg19/gene_names"] = file["hg19/features/name"][()]
        file.copy("hg19", "mm10")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("data", None, "matrix/data: found keys .*'indptr'"),
        ("barcodes", None, "matrix/barcodes: found keys"),
        ("features/name", None, "matrix/features/name: found keys"),
        ("features", None, "matrix/features/id: found keys"),
        ("features/feature_type", None, "feature_type: found"),
        ("features/feature_type", np.full(6, b"Custom"), r"found 0 genes; types \['Custom'\]"),
        ("features/name", lambda v: v[1:], "names: found 5, expected 6"),
        ("barcodes", lambda v: v[1:], r"\(6, 4\) for 6 features and 3"),
        ("barcodes", _set(1, b"ACGT-1"), "1 duplicate.*ACGT-1"),
        ("shape", lambda v: v[::-1], r"found \(4, 6\) for 6"),
        ("indices", _set(0, 6), "indices: found .* to 6, expected 0 to 5"),
        ("indices", _set(0, -1), "indices: found -1 to"),
        ("indices", lambda v: v / 1, "found float64"),
        ("indices", lambda v: v[1:], "indices: found .* one per value"),
        ("indptr", _set(-1, 10**6), "indptr: found 1000000 for .* one per value"),
        ("indptr", _set(2, 10**3), "indptr: found .*expected 5 pointers, never decreasing"),
        ("indptr", lambda v: v[1:], "size.*, expected 5 pointers"),
        ("data", _set(0, -1), "data: found 1 values negative"),
        ("data", lambda v: v / 2, "data: found .* values not whole"),
        ("data", lambda v: _set(0, np.nan)(v / 1), "1 values not finite"),
        ("data", lambda v: v.astype("S"), "found .S1"),
    ],
)
def test_bad_matrices_are_refused(tmp_path, key, change, message):
    path = write_tenx(tmp_path / "m.h5", COUNTS, BARCODES)
    edit_h5(path, f"matrix/{key}", change)
    with pytest.raises(BadInput, match=message):
        read_tenx(path)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda p: h5py.File(p, "w").close(), "matrix: found no keys"),
        (_of_two_genomes, "found keys 'hg19', 'mm10', expected a group 'matrix', or one"),
        (_a_feature_twice, "a feature twice in one barcode, expected each feature once"),
        (lambda p: p.write_bytes(p.read_bytes()[:-500]), "truncated"),
        (lambda p: p.write_text("<html>"), "expected an HDF5 file"),
    ],
)
def test_other_files_are_refused(tmp_path, corrupt, message):
    path = write_tenx(tmp_path / "m.h5", COUNTS, BARCODES)
    corrupt(path)
    with pytest.raises(BadInput, match=message):
        read_tenx(path)


def test_indices_in_another_order_are_the_same_matrix(tmp_path):
    path = write_tenx(tmp_path / "m.h5", COUNTS, BARCODES)
    with h5py.File(path, "r+") as file:
        starts = file["matrix/indptr"][()]
        for key in ("indices", "data"):
            values = file[f"matrix/{key}"][()]
            parts = [values[a:b][::-1] for a, b in zip(starts[:-1], starts[1:], strict=True)]
            file[f"matrix/{key}"][...] = np.concatenate(parts)
    np.testing.assert_array_equal(read_tenx(path).counts.toarray(), COUNTS[:, :5])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("matrix.mtx.gz", None, "counts: found 'barcodes.tsv.gz', 'features.tsv.gz', expec"),
        ("matrix.mtx.gz", b"not a matrix", "expected a Matrix Market file"),
        (
            "barcodes.tsv.gz",
            b"A-1\n",
            r"found coordinate \(6, 4\) .*, expected coordinate \(6, 1\)",
        ),
        ("features.tsv.gz", b"a\nb\n", "columns: found 1, expected ids and names"),
    ],
)
def test_bad_folders_are_refused(tmp_path, name, content, message):
    folder = write_tenx_folder(tmp_path / "m", COUNTS, BARCODES)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(gzip.compress(content))
    with pytest.raises(BadInput, match=message):
        read_tenx(folder)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, seed):
    whole = write_tenx(tmp_path / "m.h5", COUNTS, BARCODES).read_bytes()
    rng, path = np.random.default_rng(seed), tmp_path / "damaged.h5"
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(8, len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(BadInput):
            result = read_tenx(path)
            assert result.counts.shape == (len(result.barcodes), len(result.genes))
