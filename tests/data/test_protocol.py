from __future__ import annotations

import pytest

from stflow_graph.data.genes import write_gene_list
from stflow_graph.data.protocol import protocol_name
from stflow_graph.data.splits import Dataset, split_files, write_splits

GENES = ["A", "B"]


def make(folder, tested=(0, 1, 2), patients=("P1", "P2", "P3"), genes=GENES, **lists):
    write_splits(folder / "splits", split_files("XYZ", tested, patients))
    write_gene_list(folder / "g.json", genes)
    for name, content in lists.items():
        write_gene_list(folder / f"{name}.json", content)
    return Dataset(folder.name, folder)


def test_the_name_says_what_is_measured(tmp_path):
    parts = protocol_name(make(tmp_path), "log1p", "g.json").split(" | ")
    assert parts[:3] == ["log1p", "g.json", "patient-grouped 3-fold"]
    assert len(parts[3]) == 8
    int(parts[3], 16)


def test_the_split_rule_says_what_is_known_of_patients(tmp_path):
    for patients, rule in (
        (["P1", "P2", "P2"], "slide-grouped 3-fold, patients on both sides"),
        (["P1", "", "P2"], "slide-grouped 3-fold, patients unknown"),
        ([], "slide-grouped 3-fold, patients unknown"),
    ):
        assert f" | {rule} | " in protocol_name(make(tmp_path, (0, 1, 2), patients), "log1p", "g")


def test_places_and_the_order_of_genes_do_not_matter(tmp_path):
    name = protocol_name(make(tmp_path / "a"), "log1p", "g.json")
    other = make(tmp_path / "elsewhere", genes=GENES[::-1])
    assert protocol_name(other, "log1p", str(tmp_path / "elsewhere/g.json")) == name


@pytest.mark.parametrize(
    "change",
    [
        {"target": "log1p_normalised"},
        {"genes": ["A", "C"]},
        {"tested": (0, 0, 1)},
        {"tested": (1, 0, 2)},
    ],
)
def test_another_target_gene_or_slide_makes_another_name(tmp_path, change):
    target = change.pop("target", "log1p")
    name = protocol_name(make(tmp_path / "a"), "log1p", "g.json")
    other = protocol_name(make(tmp_path / "b", **change), target, "g.json")
    assert other.split(" | ")[3] != name.split(" | ")[3]


def test_a_folds_own_genes_count(tmp_path):
    dataset = make(tmp_path, f_fold0=["A"], f_fold1=["B"])  # fold 2 has no list
    before = protocol_name(dataset, "log1p", "f.json")
    assert before.startswith("log1p | f_fold{fold}.json | ")
    assert (
        protocol_name(dataset, "log1p", "f.json", folds=dataset.folds()[1:]).split(" | ")[:2]
        == (before.split(" | ")[:2])
    )
    write_gene_list(tmp_path / "f_fold1.json", ["C"])
    assert protocol_name(dataset, "log1p", "f.json") != before
