from __future__ import annotations

import pytest
from real import BENCH, KIT, needs_real_slides

from stflow_graph.data.splits import Dataset
from stflow_graph.errors import BadInput
from stflow_graph.stages.split import split

PATIENTS = "id,patient,organ,study\nA,P1,x,1\nB,P1,x,2\nC,P2,y,1\nD,P3,y,1\nE,P9,y,1\n"


def table(cohort, text=PATIENTS, name="patients.csv"):
    file = cohort.root / name
    file.write_text(text)
    return file


def sides(made):
    return [([s.id for s in f.train], [s.id for s in f.test]) for f in made.folds]


def test_every_slide_is_tested_once_and_patients_stay_on_one_side(cohort):
    table(cohort)
    made = split(cohort.root, k=2, overwrite=True)
    assert sorted(name for _, test in sides(made) for name in test) == list("ABCD")
    assert not any(fold.shared_patients for fold in made.folds)
    assert all(fold.knows_patients for fold in made.folds)
    assert sides(made)[0][1] == ["A", "B"]  # 72 of 144 spots
    assert made.n_spots == dict.fromkeys("ABCD", 36)
    assert made.not_there == ["E"]
    for sample in made.folds[0].test:
        assert sample.expr_path == cohort.expression(sample.id)
    header = (cohort.root / "splits/test_0.csv").read_text().splitlines()[0]
    assert header == "sample_id,patches_path,expr_path,patient"


def test_the_same_again_writes_nothing_and_other_splits_are_kept(cohort):
    file = table(cohort, name="elsewhere.csv")
    with pytest.raises(BadInput, match="8 other files.*--overwrite"):
        split(cohort.root, table=file)
    assert len(Dataset("d", cohort.root).folds()) == 4
    assert not split(cohort.root, table=file, overwrite=True).up_to_date
    before = {f: f.stat().st_mtime_ns for f in (cohort.root / "splits").iterdir()}
    again = split(cohort.root, table=file)
    assert again.up_to_date
    assert {f: f.stat().st_mtime_ns for f in (cohort.root / "splits").iterdir()} == before
    assert len(again.folds) == 3  # one for each patient


def test_slides_are_not_passed_off_as_patients(cohort):
    file = table(cohort)
    by_slide = split(cohort.root, columns=["id"], table=file, overwrite=True)
    assert len(by_slide.folds) == 4
    assert by_slide.folds[0].shared_patients == ["P1"]
    table(cohort, PATIENTS.replace("patient", "donor"))
    by_donor = split(cohort.root, columns=["donor"], overwrite=True)
    assert len(by_donor.folds) == 3
    assert not by_donor.folds[0].knows_patients


def test_columns_combine(cohort):
    table(cohort)
    made = split(cohort.root, columns=["study", "patient"], overwrite=True)
    assert [fold.test[0].patient for fold in made.folds] == ["1/P1", "2/P1", "1/P2", "1/P3"]


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ({"k": 4}, PATIENTS, r"patient: found 3 groups \(P1, P2, P3\), expected at least 4"),
        ({}, PATIENTS.replace("P2", ""), r"none for 1 of 4 slides, such as \['C'\].*--table"),
        ({}, PATIENTS.replace("D,", "X,"), r"none for 1 of 4 slides, such as \['D'\]"),
        ({}, "id,patient\nA,P\nB,P\nC,P\nD,P\n", r"1 groups \(P\), expected at least 2"),
        ({"stratify": "stage"}, PATIENTS, "columns: found .*also stage"),
        ({}, "", "adata: patient: found none for 4 of 4"),
    ],
)
def test_too_few_or_unknown_patients_are_refused(cohort, options, text, message):
    if text:
        table(cohort, text)
    with pytest.raises(BadInput, match=message):
        split(cohort.root, overwrite=True, **options)
    assert len(Dataset("d", cohort.root).folds()) == 4


def test_a_folder_without_slides_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no .h5ad file"):
        split(tmp_path)


@needs_real_slides
def test_real_folds_hold_out_patients(tmp_path):
    (tmp_path / "adata").symlink_to(BENCH / "adata")
    made = split(tmp_path, table=KIT / "dataset.csv")
    assert sides(made) == [(["C2", "C3", "C4", "C5"], ["B4"]), (["B4"], ["C2", "C3", "C4", "C5"])]
