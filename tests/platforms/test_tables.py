import gzip
import warnings

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from stflow_graph.errors import BadInput
from stflow_graph.io.expression import write_expression
from stflow_graph.platforms.tables import (
    SpotTable,
    check_orientation,
    read_counts,
    read_spots,
)

BARCODES = ["3x4", "10x2", "7x7"]
GENES = ["B.1", "A", "HLA-C", "MT-1"]
COUNTS = np.array([[0, 3, 0, 12], [0, 0, 0, 0], [1, 0, 2**20, 0]])


def text_of(counts=COUNTS, barcodes=BARCODES, genes=GENES, separator="\t"):
    rows = [["", *genes], *([b, *map(str, row)] for b, row in zip(barcodes, counts, strict=True))]
    return "".join(separator.join(row) + "\n" for row in rows)


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz", "c.csv", "c.csv.gz", "c.txt", "c.h5ad"])
def test_counts_are_read_as_written_from_every_format(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".h5ad"):
        coords = np.zeros((3, 2))
        write_expression(path, sp.csr_matrix(COUNTS), BARCODES, GENES, coords, um_per_px=0.5)
    else:
        write(path, text_of(separator="," if ".csv" in name else "\t"))
    result = read_counts(path)
    assert (result.barcodes, result.genes) == (BARCODES, GENES)
    assert result.counts.dtype == np.float32
    assert result.counts.nnz == np.count_nonzero(COUNTS)
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS)
    np.testing.assert_array_equal(result.total, COUNTS.sum(axis=1))


def test_genes_that_stand_twice_in_an_h5ad_are_both_kept(tmp_path):
    """scanpy reads 10x's files so; ``prepare`` has no option for them."""
    adata = anndata.AnnData(sp.csr_matrix(COUNTS.astype(np.float32)))
    adata.obs_names, adata.var_names = BARCODES, ["A", "B", "A", "C"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are not unique
        adata.write_h5ad(tmp_path / "c.h5ad")
        result = read_counts(tmp_path / "c.h5ad")
    assert result.genes == ["A", "B", "A-1", "C"]
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS)


def test_whole_numbers_may_be_written_as_decimals_and_lines_may_end_in_crlf(tmp_path):
    text = text_of(COUNTS.astype(float)).replace("\n", "\r\n")
    np.testing.assert_array_equal(
        read_counts(write(tmp_path / "c.tsv", text)).counts.toarray(), COUNTS
    )


@pytest.mark.parametrize("name", ["c.tsv", "c.csv", "c.csv.gz"])
@pytest.mark.parametrize("separator", [";", ",", "\t"])
def test_other_separators_are_recognised_by_the_first_row(tmp_path, name, separator):
    result = read_counts(write(tmp_path / name, text_of(separator=separator)))
    assert (result.barcodes, result.genes) == (BARCODES, GENES)
    np.testing.assert_array_equal(result.counts.toarray(), COUNTS)


def test_hdf5_that_is_given_as_a_table_is_named(tmp_path):
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as file:
        file["matrix/data"] = [1]
    for read in (read_counts, read_spots):
        with pytest.raises(BadInput, match=r"content: found an HDF5 file, expected a table.*10x"):
            read(path)


def test_a_count_table_with_genes_in_rows_is_named_so(tmp_path):
    names = ["3x4", "10x2", "7x7", "1x1"]
    turned = text_of(COUNTS.T, barcodes=GENES, genes=BARCODES)
    counts = read_counts(write(tmp_path / "c.tsv", turned))
    spots = SpotTable(names, np.zeros((4, 2)))
    with pytest.raises(BadInput, match=r"c.tsv: rows: found genes, such as \['B.1'.*transpose"):
        check_orientation(spots, counts, tmp_path / "c.tsv")
    check_orientation(spots, read_counts(write(tmp_path / "d.tsv", text_of())), "d.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("a\nb\n", "0 genes in this table.*spots in rows"),
        (text_of([], []), "0 spots"),
        (text_of(genes=["A", "B", "A", "C"]), r"genes: found 1 duplicate.*\['A'\]"),
        (text_of(barcodes=["a", "b", "a"]), r"barcodes: found 1 duplicate"),
        (text_of(COUNTS - 1), "'3x4', gene 'B.1': found '-1', expected a raw count"),
        (text_of(COUNTS / 2), "gene 'A': found '1.5'"),
        (text_of(COUNTS).replace("12", "nan"), "gene 'MT-1': found 'nan'"),
        (text_of(COUNTS).replace("12", "1e999"), "gene 'MT-1'"),
        (text_of(COUNTS).replace("12", ""), "'3x4': found could not convert.*numbers"),
        (text_of(COUNTS).replace("12", "12\t5"), "6 cells in the row of '3x4', expected 5"),
        (text_of(COUNTS).replace("\t12", ""), "4 cells in the row of '3x4', expected 5"),
        (text_of(genes=GENES[1:]), "5 cells in the row of '3x4', expected 4"),
    ],
)
def test_bad_counts_are_refused(tmp_path, text, message):
    with pytest.raises(BadInput, match=message):
        read_counts(write(tmp_path / "c.tsv", text))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.tsv.gz", text_of().encode()),
        ("c.tsv.gz", gzip.compress(text_of().encode(), mtime=0)[:-12]),
        ("c.tsv.gz", gzip.compress(text_of().encode(), mtime=0)[:20] + b"\xff" * 30),
        ("c.tsv", b"\x89HDF\r\n\x1a\n\xff"),
        ("c.tsv", b"\tA\n3x4\t" + b"1" * 200_000 + b"\n"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match="content: found"):
        read_counts(tmp_path / name)
    with pytest.raises(BadInput, match="content: found"):
        read_spots(tmp_path / name)


@pytest.mark.parametrize("reader", [read_counts, read_spots])
def test_a_missing_file_is_named(tmp_path, reader):
    with pytest.raises(BadInput, match=r"none\.csv: file: found 'No such file"):
        reader(tmp_path / "none.csv")


LEGACY = (
    "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    "9\t13\t8.9\t12.9\t2307.86\t3500.48\t1\n"
    "8\t13\t7.8\t13.0\t1989.71\t3506.03\t0\n"
)
VISIUM = (
    "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    "AC-1,0,13,9,3500.48,2307.86\nGT-1,1,13,8,3506.03,1989.71\n"
)
PLAIN = "barcode,x,y\na,2307.86,3500.48\nb,1989.71,3506.03\n"
COORDS = [[2307.86, 3500.48], [1989.71, 3506.03]]


@pytest.mark.parametrize(
    ("name", "text", "barcodes", "selected", "array"),
    [
        ("s.tsv", LEGACY, ["9x13", "8x13"], [True, False], [[9, 13], [8, 13]]),
        # rows are y
        ("tissue_positions.csv", VISIUM, ["AC-1", "GT-1"], [False, True], [[9, 13], [8, 13]]),
        ("s.csv", PLAIN, ["a", "b"], None, None),
        ("s.csv.gz", PLAIN, ["a", "b"], None, None),
    ],
)
def test_spot_tables_of_every_kind_are_read(tmp_path, name, text, barcodes, selected, array):
    spots = read_spots(write(tmp_path / name, text))
    assert spots.barcodes == barcodes
    np.testing.assert_array_equal(spots.coords, COORDS)
    np.testing.assert_array_equal(spots.selected, selected)
    np.testing.assert_array_equal(spots.array, array)


@pytest.mark.parametrize(
    ("header", "array", "named"),
    [
        ("Barcode,X,Y,row,col", True, "columns X, Y"),
        ("barcode,x_pixel,y_pixel,array_col,array_row", False, "columns x_pixel, y_pixel"),
        (",imagecol,imagerow,row,col", True, "columns imagecol, imagerow"),
        ("Barcode,Pixel_X,Pixel_Y,row,col", True, "columns Pixel_X, Pixel_Y"),
        ("barcode,pixel_x,pixel_y,row,col", True, None),
        ("barcode,x,y,X,Y", None, None),
    ],
)
def test_common_names_of_columns_are_recognised_and_told(tmp_path, caplog, header, array, named):
    text = f"{header}\na,2307.86,3500.48,13,9\nb,1989.71,3506.03,13,8\n"
    spots = read_spots(write(tmp_path / "s.csv", text))
    np.testing.assert_array_equal(spots.coords, COORDS)
    if array is None:
        assert spots.array is None
    else:
        places = [[9, 13], [8, 13]] if array else [[13, 9], [13, 8]]
        np.testing.assert_array_equal(spots.array, places)
    assert [r.getMessage() for r in caplog.records] == (
        [] if named is None else [f"{tmp_path / 's.csv'}: {named} are taken as pixels x, y"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEGACY.splitlines()[0], "0 spots"),
        (LEGACY.replace("pixel_x", "px"), "columns: found.*'px'.*expected barcode"),
        ("x\ty\n1\t2\n", "columns: found"),
        ("pixel_x\tpixel_y\n1\t2\n", "columns: found"),
        (LEGACY.replace("2307.86", "nan"), "1 of 2 rows not finite"),
        (LEGACY.replace("2307.86", ""), "pixel_x: found could not convert"),
        (LEGACY.replace("8\t13\t7", "9\t13\t7"), "duplicate.*9x13"),
        (LEGACY.replace("9\t13", "9.5\t13"), "whole numbers"),
        (LEGACY.replace("9\t13", "nan\t13"), "whole numbers"),
        (LEGACY.replace("3500.48\t1", "3500.48\t2"), r"selected: found \[2.0\], expected 0 or 1"),
        (LEGACY.replace("new_x", "x"), "columns: found 1 duplicate"),
        (LEGACY + "1\t2\n", "2 cells in the row of '1', expected 7"),
    ],
)
def test_bad_spot_tables_are_refused(tmp_path, text, message):
    with pytest.raises(BadInput, match=message):
        read_spots(write(tmp_path / "s.tsv", text))
