from __future__ import annotations

import json

import pytest

from stflow_graph.data.genes import read_gene_list, write_gene_list
from stflow_graph.errors import BadInput


def test_what_is_written_is_read(tmp_path):
    write_gene_list(tmp_path / "g.json", ["B", "A"])
    assert read_gene_list(tmp_path / "g.json") == ["B", "A"]
    assert json.loads((tmp_path / "g.json").read_text()) == {"genes": ["B", "A"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gene": ["A"]}, "NoneType.*list"),
        ({"genes": []}, "0 genes"),
        ({"genes": ["A", "B", "A"]}, r"\['A'\]"),
        ({"genes": [1]}, "list of gene names"),
        (3, "list of gene names"),
    ],
)
def test_bad_lists_are_refused(tmp_path, content, message):
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        read_gene_list(tmp_path / "g.json")
