from __future__ import annotations

import gzip

import pytest

from stflow_graph.errors import BadInput
from stflow_graph.io.gene_sets import columns_of_sets, read_gene_sets


def test_sets_of_several_files_in_their_order(tmp_path):
    (tmp_path / "a.gmt").write_text("HALLMARK\thttp://x\tTP53\tACTB\tTP53\n\nB\t\tGAPDH\n")
    text = "C\tof Enrichr\tCD3E,1.0\tCD4,0.5\t\n"
    (tmp_path / "b.gmt.gz").write_bytes(gzip.compress(text.encode()))
    sets = read_gene_sets([tmp_path / "a.gmt", tmp_path / "b.gmt.gz"])
    assert list(sets.items()) == [
        ("HALLMARK", ["TP53", "ACTB"]),
        ("B", ["GAPDH"]),
        ("C", ["CD3E", "CD4"]),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("A,TP53,ACTB\n", "separated by tabs"),
        ("A\tdescription\n", "separated by tabs"),
        ("\tdescription\tTP53\n", "separated by tabs"),
        ("A\tx\tTP53\nA\tx\tACTB\n", "'A' twice"),
        (b"A\tx\t\xff\n", "no UTF-8 text"),
    ],
)
def test_what_is_no_gmt_file_is_refused(tmp_path, text, message):
    path = tmp_path / "a.gmt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(BadInput, match=message):
        read_gene_sets([path])


def test_genes_are_found_by_name_and_else_by_version_and_case():
    genes = ["Actb", "ENSG00000000001.3", "gapdh", "GAPDH", "CD4", "cd4"]
    sets = {
        "exact": ["CD4", "GAPDH"],
        "loose": ["ACTB", "ENSG00000000001"],
        "unclear": ["Cd4"],
        "none": ["TP53"],
    }
    columns, n_renamed = columns_of_sets(sets, genes)
    expected = {"exact": [3, 4], "loose": [0, 1], "unclear": [], "none": []}
    assert {name: found.tolist() for name, found in columns.items()} == expected
    assert n_renamed == 2
