from __future__ import annotations

import pytest

from stflow_graph.data.splits import (
    Fold,
    embedding_path,
    find_datasets,
    find_embedding,
    split_files,
    write_splits,
)
from stflow_graph.errors import BadConfig, BadInput

HEADER = "sample_id,patches_path,expr_path\n"


def row(name: str) -> str:
    return f"{name},patches/{name}.h5,adata/{name}.h5ad\n"


def dataset(folder, train=("A", "B"), test=("C",), fold=0):
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    for side, names in (("train", train), ("test", test)):
        text = HEADER + "".join(map(row, names))
        (folder / "splits" / f"{side}_{fold}.csv").write_text(text)
    return folder


def test_a_root_and_a_single_data_set_folder_are_both_found(tmp_path):
    dataset(tmp_path / "IDC")
    dataset(tmp_path / "PRAD")
    (tmp_path / "other").mkdir()
    assert [d.name for d in find_datasets(tmp_path)] == ["IDC", "PRAD"]
    assert [d.name for d in find_datasets(tmp_path, ["PRAD"])] == ["PRAD"]
    assert [d.name for d in find_datasets(tmp_path / "IDC")] == ["IDC"]
    with pytest.raises(BadInput, match=r"\['LUNG'\].*\['IDC', 'PRAD'\]"):
        find_datasets(tmp_path, ["LUNG"])
    with pytest.raises(BadInput, match="'IDC', the folder itself"):
        find_datasets(tmp_path / "IDC", ["PRAD"])


def test_folds_come_in_the_order_of_their_numbers(tmp_path):
    for fold in (10, 2, 0):
        dataset(tmp_path, fold=fold)
    folds = find_datasets(tmp_path)[0].folds()
    assert [fold.index for fold in folds] == [0, 2, 10]
    assert folds[0].train[1].expr_path == tmp_path / "adata" / "B.h5ad"
    assert [s.id for s in find_datasets(tmp_path)[0].samples()] == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (("A",), ("A",), r"\['A'\] also in train_0"),
        (("A", "A"), ("B",), "duplicate"),
        ((), ("B",), "none or empty"),
        (("../A",), ("B",), "letters, digits"),
    ],
)
def test_bad_splits_are_refused(tmp_path, train, test, message):
    with pytest.raises(BadInput, match=message):
        find_datasets(dataset(tmp_path, train, test))[0].folds()


@pytest.mark.parametrize("column", ["patches_path", "expr_path"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "a/../../b", ".", "a\x1bb"])
def test_split_files_name_no_path_outside_their_data_set(tmp_path, column, name):
    folder = dataset(tmp_path)
    paths = {"patches_path": "patches/A.h5", "expr_path": "adata/A.h5ad", column: name}
    text = f"{HEADER}A,{paths['patches_path']},{paths['expr_path']}\n"
    (folder / "splits/train_0.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"train_0\.csv: {column}: found .*expected a path below"):
        find_datasets(folder)[0].folds()


def test_split_files_may_name_other_places_inside(tmp_path, monkeypatch):
    folder = dataset(tmp_path)
    (folder / "splits/train_0.csv").write_text(f"{HEADER}A,x/../p/A.h5,{folder / 'e/A.h5ad'}\n")
    (sample,) = find_datasets(folder)[0].folds()[0].train
    assert (sample.patches_path, sample.expr_path) == (folder / "x/../p/A.h5", folder / "e/A.h5ad")
    monkeypatch.chdir(folder)  # a relative root
    assert find_datasets(".")[0].folds()[0].train[0].expr_path == folder / "e/A.h5ad"


@pytest.mark.parametrize("name", ["notes.txt", "train_0.csv.bak", "test_1.csv", "train_x.csv"])
def test_splits_replace_split_files_and_nothing_else(tmp_path, name):
    files = split_files(["A", "B"], [0, 1])
    write_splits(tmp_path / "splits", files)
    write_splits(tmp_path / "splits", files)
    (tmp_path / "splits" / name).write_text("mine\n")
    with pytest.raises(BadInput, match=rf"other entries, such as \['{name}'\].*or split files"):
        write_splits(tmp_path / "splits", files)
    assert (tmp_path / "splits" / name).read_text() == "mine\n"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="found a file"):
        write_splits(tmp_path / "file", files)


def test_bad_split_files_are_refused(tmp_path):
    folder = dataset(tmp_path)
    (folder / "splits" / "test_0.csv").write_text("id,path\nA,b\n")
    with pytest.raises(BadInput, match="sample_id, patches_path, expr_path"):
        find_datasets(folder)[0].folds()
    (folder / "splits" / "test_0.csv").unlink()
    with pytest.raises(BadInput, match=r"test_0.csv: file"):
        find_datasets(folder)[0].folds()
    (folder / "splits" / "train_0.csv").unlink()
    with pytest.raises(BadInput, match="no train_<i>.csv"):
        find_datasets(folder)[0].folds()


def test_roots_without_data_sets_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        find_datasets(tmp_path / "none")
    with pytest.raises(BadInput, match="no data set"):
        find_datasets(tmp_path)


@pytest.mark.parametrize(
    "place", ["D/enc/fp32/A.h5", "D/enc/A.h5", "enc/fp32/A.h5", "enc/A.h5", "A.h5"]
)
def test_embeddings_are_found_in_every_layout(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    assert find_embedding(tmp_path, "D", "enc", "A") == file


def test_absent_embeddings_name_the_first_place_and_the_command(tmp_path):
    with pytest.raises(BadInput, match=r"fp32/A.h5.*stflow-graph embed"):
        find_embedding(tmp_path, "D", "enc", "A")
    assert str(embedding_path("r", "D", "enc", "A")) == "r/D/enc/fp32/A.h5"


def test_gene_lists_may_be_of_a_fold(tmp_path):
    found, fold = find_datasets(dataset(tmp_path / "D"))[0], Fold(2, (), ())
    assert (
        found.gene_list_path("g.json", fold) == tmp_path / "D/g.json"
    )  # named if nothing is there
    (tmp_path / "D/g_fold2.json").write_text("")
    assert found.gene_list_path("g.json", fold) == tmp_path / "D/g_fold2.json"
    assert found.gene_list_path("g_fold{fold}.json", fold) == tmp_path / "D/g_fold2.json"
    (tmp_path / "D/g.json").write_text("")
    assert found.gene_list_path("g.json", fold) == tmp_path / "D/g.json"
    elsewhere = tmp_path / "own.json"
    elsewhere.write_text("")
    assert found.gene_list_path(str(elsewhere), fold) == elsewhere


def test_all_slides_need_no_splits(tmp_path):
    (tmp_path / "D/adata").mkdir(parents=True)
    for name in "BA":
        (tmp_path / f"D/adata/{name}.h5ad").touch()
    (tmp_path / "D/patients.csv").write_text("sample_id,patient\nA,P1\nB,P2\n")
    (found,) = find_datasets(tmp_path)
    (fold,) = found.training_folds("all")
    assert ([s.id for s in fold.train], fold.test, fold.index) == (["A", "B"], (), None)
    assert [s.patient for s in fold.train] == ["P1", "P2"]
    assert fold.train[0].expr_path == tmp_path / "D/adata/A.h5ad"
    (tmp_path / "D/g_all.json").touch()
    assert found.gene_list_path("g.json", fold) == tmp_path / "D/g_all.json"
    with pytest.raises(BadInput, match=r"no \.h5ad file"):
        find_datasets(dataset(tmp_path / "E"))[0].training_folds("all")


def test_what_is_written_is_read_with_its_patients(tmp_path):
    for patients in (["P,1", "P1", "P2"], ["P1", "", "P2"], []):
        write_splits(tmp_path / "splits", split_files(["A", "B", "C"], [1, 0, 1], patients))
        first, second = find_datasets(tmp_path)[0].folds()
        assert [s.id for s in first.train] == [s.id for s in second.test] == ["A", "C"]
        found = [s.patient for s in (first.train[0], first.test[0], first.train[1])]
        assert found == (patients or ["", "", ""])
        assert first.knows_patients == all(found)
    assert "patient" not in (tmp_path / "splits/test_0.csv").read_text()


def test_patients_on_both_sides_are_refused_unless_allowed(tmp_path):
    found = find_datasets(dataset(tmp_path))[0]
    assert len(found.training_folds()) == 1  # patients unknown: as HEST-bench has it
    (tmp_path / "metadata.csv").write_text("sample_id,patient\nA,P1\nC,P1\n")
    with pytest.raises(BadInput, match=r"test_0.csv: patient: found \['P1'\] also in train_0"):
        found.training_folds()
    (fold,) = found.training_folds(allow_patient_overlap=True)
    assert fold.shared_patients == ["P1"]
    assert not fold.knows_patients
    # what a split file says itself wins
    text = HEADER.replace("path\n", "path,patient\n") + row("C").replace("\n", ",P2\n")
    (tmp_path / "splits" / "test_0.csv").write_text(text)
    assert found.training_folds()[0].test[0].patient == "P2"


def test_only_the_folds_that_are_wanted_are_judged(tmp_path):
    write_splits(tmp_path / "splits", split_files("ABC", [0, 1, 2], ["P1", "P2", "P2"]))
    found = find_datasets(tmp_path)[0]
    assert [fold.index for fold in found.training_folds([0])] == [0]
    with pytest.raises(BadInput, match="test_1.csv.*--allow-patient-overlap"):
        found.training_folds([0, 1])
    with pytest.raises(BadConfig, match=r"\[7\] not in .* folds 0, 1, 2"):
        found.training_folds([7])
