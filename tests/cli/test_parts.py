"""``--part``: the parts of a command write what one run writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from fault_commands import EMBED, write_inputs
from imaged import write_imaged
from toy import toy_encoder, write_images


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def imaged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imaged")
    write_imaged(folder)
    return folder


@pytest.fixture
def words(request, inputs, imaged, tmp_path, monkeypatch):
    """Return a command without its output."""
    monkeypatch.setattr("stflow_graph.encoders.create_encoder", lambda *_: toy_encoder())
    for i in range(2, 5):
        write_images(tmp_path / f"patches/p{i}.h5", 20 * i)
    return {
        "sample": ["sample", inputs / "run", inputs / "embeddings/cohort/toy/fp32"],
        "embed": ["embed", *sorted((tmp_path / "patches").iterdir()), *EMBED],
        "predict": ["predict", imaged / "images", "--model", imaged / "run"],
    }[request.param]


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".html"
    }


@pytest.mark.parametrize("words", ["sample", "embed", "predict"], indirect=True)
def test_two_parts_write_what_one_run_writes(cli, words, tmp_path):
    assert cli(*words, "--out", tmp_path / "whole").code == 0
    records = []
    for part in ("2/2", "1/2"):
        run = cli(*words, "--out", tmp_path / "parts", "--part", part, "--json")
        assert run.code == 0, run
        records.append([record["slide"] for record in json.loads(run.out)["results"]])
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert all(records)
    assert not set(records[0]) & set(records[1])
    pages = {path.name for path in (tmp_path / "parts").glob("*.html")}
    both = {"report-1-of-2.html", "report-2-of-2.html"}
    assert pages == (both if words[0] == "predict" else set())


@pytest.mark.parametrize("words", ["sample", "embed", "predict"], indirect=True)
def test_a_part_without_slides_succeeds_with_one_line(cli, words, tmp_path, monkeypatch):
    run = cli(*words, "--out", tmp_path / "out", "--part", "9/9")
    assert (run.code, run.out, run.err) == (0, "part 9/9 has no slides\n", "")
    assert not files(tmp_path / "out")
    for name, value in {"ID": "9", "COUNT": "9", "MIN": "1"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    run = cli(*words, "--out", tmp_path / "out", "--part", "auto", "--json")
    assert json.loads(run.out)["results"] == []


@pytest.mark.parametrize("words", ["sample", "embed", "predict"], indirect=True)
@pytest.mark.parametrize("text", ["3/2", "0/2", "two", "auto"])
def test_bad_parts_are_one_line(cli, words, tmp_path, monkeypatch, text):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    run = cli(*words, "--out", tmp_path / "out", "--part", text)
    assert run.code == 2
    (line,) = [line for line in run.err.splitlines() if "--part" in line]
    assert line.startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_one_image_has_no_parts(cli, tmp_path):
    run = cli("embed", "--image", "S.svs", "--out", tmp_path / "S.h5", "--part", "1/2")
    assert (run.code, "are of several slides" in run.err) == (2, True)


@pytest.mark.parametrize("words", ["predict"], indirect=True)
def test_a_dry_run_is_of_the_part(cli, words, tmp_path):
    found = [
        {line.split(":")[0] for line in run.out.splitlines()[:-2]}
        for run in (
            cli(*words, "--out", tmp_path / "out", "--dry-run", "--part", f"{i}/2") for i in (1, 2)
        )
    ]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {"S0", "S1", "S2", "S3"}
