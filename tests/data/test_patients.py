from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from stflow_graph.data.patients import count_spots, find_table, read_groups, stored_group
from stflow_graph.errors import BadInput

HEST = (
    "dataset_title,id,organ,species,patient,treatment_comment\n"
    'Study 1,TENX1,Breast,Homo sapiens,Patient 1,"two\nlines, quoted"\n'
    "Study 1,TENX2,Breast,Homo sapiens,Patient 2,\n"
    "Study 2,NCBI1,Brain,Mus musculus,Patient 1,\n"
    "Study 3,NCBI2,Brain,Mus musculus,,\n"
)


def test_hest_metadata_are_read_as_they_are(tmp_path):
    file = tmp_path / "HEST_v1_1_0.csv"
    file.write_text(HEST)
    assert read_groups(file) == {
        "TENX1": "Patient 1",
        "TENX2": "Patient 2",
        "NCBI1": "Patient 1",
        "NCBI2": "",
    }
    both = read_groups(file, ["dataset_title", "patient"])
    assert both["TENX1"] == "Study 1/Patient 1"
    assert both["NCBI1"] == "Study 2/Patient 1"
    assert both["NCBI2"] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,patient\nA,P\n", "columns: found .*one of sample_id, id"),
        ("id,donor\nA,P\n", "columns: found .*also patient"),
        ("id,patient\nA,P\nA,Q\n", "patient of A: found 'P' and 'Q', expected one for each"),
        ("", "an empty file"),
    ],
)
def test_tables_without_slides_or_groups_are_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_groups(tmp_path / "t.csv")


def test_the_first_table_with_patients_is_found(tmp_path):
    assert find_table(tmp_path) is None
    (tmp_path / "dataset.csv").write_text("id,patient\nA,P\n")
    (tmp_path / "metadata.csv").write_text("id,organ\nA,lung\n")
    assert find_table(tmp_path) == tmp_path / "dataset.csv"
    assert find_table(tmp_path, "organ") == tmp_path / "metadata.csv"


def test_a_slide_may_have_several_rows(tmp_path):
    (tmp_path / "t.tsv").write_text("sample\tpatient\tspot\nA\tP\t1\nA\tP\t2\nB\tQ\t1\n")
    assert read_groups(tmp_path / "t.tsv") == {"A": "P", "B": "Q"}


def test_a_foreign_table_of_the_same_name_is_passed_over_and_named(tmp_path, caplog):
    (tmp_path / "metadata.csv").write_bytes(b"id,patient\nA,P,more,cells\n\xff\n")
    (tmp_path / "dataset.csv").write_text("id,patient\nA,P\n")
    assert find_table(tmp_path) == tmp_path / "dataset.csv"
    assert "metadata.csv" in caplog.text


def write(path, obs=None, uns=None, n=3):
    table = pd.DataFrame(obs or {}, index=[f"b{i}" for i in range(n)])
    anndata.AnnData(np.ones((n, 2), np.float32), obs=table, uns=uns or {}).write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"uns": {"patient": "P1"}}, "P1"),
        ({"uns": {"patient": 7}}, "7"),
        ({"obs": {"patient": ["P1"] * 3}}, "P1"),
        ({"obs": {"patient": pd.Categorical(["P1"] * 3, categories=["P0", "P1"])}}, "P1"),
        ({"obs": {"patient": [4, 4, 4]}}, "4"),
        ({"obs": {"patient": pd.Categorical(["P1", None, "P1"])}}, "P1"),
        ({"obs": {"donor": ["P1"] * 3}}, ""),
        ({}, ""),
    ],
)
def test_a_slides_own_file_may_name_its_patient(tmp_path, stored, expected):
    path = write(tmp_path / "a.h5ad", **stored)
    assert stored_group(path) == expected
    assert count_spots(path) == 3


def test_a_slide_of_two_patients_is_refused(tmp_path):
    path = write(tmp_path / "a.h5ad", obs={"patient": ["P1", "P2", "P1"]})
    with pytest.raises(BadInput, match=r"obs/patient: found 2 values, such as \['P1', 'P2'\]"):
        stored_group(path)


def test_columns_that_cannot_be_read_are_refused(tmp_path):
    path = write(tmp_path / "a.h5ad", obs={"patient": ["P1"] * 3})
    with h5py.File(path, "r+") as file:
        file["obs/patient"].attrs["encoding-type"] = "other"
    with pytest.raises(BadInput, match="obs/patient"):
        stored_group(path)
    with h5py.File(path, "r+") as file:
        del file["obs"]
    with pytest.raises(BadInput, match="no table of spots"):
        count_spots(path)
