import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from stflow_graph.errors import BadInput, MissingDependency
from stflow_graph.io.columns import numbers, read_columns, texts

FRAME = pd.DataFrame({"id": ["a", "b,c", "d"], "x": [1.5, -2.0, 3.0], "n": [1, 2, 3]})
NAMES = ("id", "x", "n")


def write(path, frame=FRAME):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="," if ".csv" in path.name else "\t")
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet"])
@pytest.mark.parametrize("requested", [(), ("x", "id")])
def test_columns_are_read_as_written(tmp_path, name, requested):
    path = write(tmp_path / name)
    result = read_columns(path, requested)
    assert set(result) == set(requested or NAMES)
    assert texts(result["id"]) == list(FRAME["id"])
    np.testing.assert_array_equal(numbers(result["x"], path, "x"), FRAME["x"])


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_missing_column_lists_those_found(tmp_path, name):
    path = write(tmp_path / name)
    with pytest.raises(BadInput, match=r"columns: found \['id', 'x', 'n'\], expected also y, z"):
        read_columns(path, ("x", "y", "z"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_without_rows_has_empty_columns(tmp_path, name):
    columns = read_columns(write(tmp_path / name, FRAME[:0]))
    assert {key: len(cells) for key, cells in columns.items()} == dict.fromkeys(NAMES, 0)


def test_a_first_row_of_numbers_is_no_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,1.5,1\nb,2,2\n")
    assert read_columns(path, no_header=NAMES) == {
        "id": ["a", "b"],
        "x": ["1.5", "2"],
        "n": ["1", "2"],
    }
    # another number of cells: not the table whose names are known
    assert list(read_columns(path, no_header=NAMES[:2])) == ["a", "1.5", "1"]
    assert list(read_columns(write(tmp_path / "h.csv"), no_header=NAMES)) == list(NAMES)


def test_bytes_are_text():
    assert texts(np.array([b"a-1", b"b-1"], dtype=object)) == ["a-1", "b-1"]
    assert texts(np.array([1, 2])) == ["1", "2"]


@pytest.mark.parametrize("keep", [0, 3, 50, -1])
def test_a_broken_parquet_file_is_refused(tmp_path, keep):
    path = write(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"t\.parquet: content: found"):
        read_columns(path)


def test_a_broken_gzip_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * 1000)[:-20])
    with pytest.raises(BadInput, match="content"):
        read_columns(path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'stflow-graph\[parquet\]'"):
        read_columns(path)
