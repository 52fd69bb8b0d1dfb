from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from stflow_graph.io.tables import table_file, write_table

TABLE = pd.DataFrame(
    {"name": ["=1+1", "-2.5", "@a", "ok"], "x": [-1.5, np.nan, 2e-9, 3], "+n": [True, False] * 2}
)


def test_text_is_no_formula_and_numbers_stay_numbers(tmp_path):
    write_table(tmp_path / "t.csv", TABLE)
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines == ["name,x,'+n", "'=1+1,-1.5,True", "-2.5,,False", "'@a,2e-09,True", "ok,3,False"]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_blocks_give_the_table_and_the_same_bytes(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="needs pip install .[parquet]")
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        with table_file(path) as append:
            append(TABLE[:1])
            append(TABLE[1:])
    a, b = (path.read_bytes() for path in paths)
    assert a == b
    if ending == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), TABLE)
    else:
        write_table(tmp_path / "whole.csv", TABLE)
        text = gzip.decompress(a) if ending.endswith("gz") else a
        assert text == (tmp_path / "whole.csv").read_bytes()
