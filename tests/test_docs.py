"""The commands of docs/data.md that read predictions work as shown."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import anndata
import pandas as pd
import pytest
from command_line import cli
from predicted import predicted

__all__ = ["cli"]
TEXT = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text(encoding="utf-8")
GENES = ["ERBB2", "KRT8", *(f"G{i}" for i in range(4))]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def commands(heading: str) -> list[list[str]]:
    """Return the words of the commands in a section's first block of bash."""
    found = re.search(r"```bash\n(.*?)```", section(heading), re.DOTALL)
    assert found is not None, heading
    lines = [shlex.split(line, comments=True) for line in found[1].replace("\\\n", "").splitlines()]
    return [words[1:] for words in lines if words[:1] == ["stflow-graph"]]


def write(cohort, name: str, path: Path) -> None:
    made = predicted(cohort, name, n_samples=4)
    made.genes = GENES
    made.write(path)


def test_summaries_of_a_cohort(cli, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ABC":
        write(cohort, name, tmp_path / f"RUN/predictions/{name}.h5ad")
    Path("patients.csv").write_text("sample_id,patient\nA,P1\nB,P1\nC,P2\n")
    Path("hallmark.gmt").write_text("HALLMARK\tx\tERBB2\tTP53\n")
    (command,) = commands("Summaries of a cohort")
    assert cli(*command).code == 0
    described = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section("Summaries of a cohort"), re.M)
    for name, text in described:
        paths = list(
            Path("SUMMARY").glob(name.replace("<slide>", "*") + ("" if "." in name else ".csv"))
        )
        assert paths, name
        if "." not in name:
            columns = set(pd.read_csv(paths[0]).columns)
            assert {word for word in re.findall(r"`(\w+)`", text) if word != "slides"} <= columns
    assert len(described) == len(list(Path("SUMMARY").iterdir()))


@pytest.mark.filterwarnings("ignore")  # of SpatialData's packages
@pytest.mark.parametrize("words", commands("Predictions in other tools"), ids=" ".join)
def test_predictions_in_other_tools(cli, cohort, tmp_path, monkeypatch, words):
    if "S1.zarr" in words and importlib.util.find_spec("spatialdata") is None:
        pytest.skip("needs the package spatialdata")
    monkeypatch.chdir(tmp_path)
    write(cohort, "A", tmp_path / "S1.h5ad")
    run = cli(*words)
    assert (run.code, run.err) == (0, ""), words
    assert Path(words[3]).exists()


def test_the_python_lines_run(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(cohort, "A", tmp_path / "S1.h5ad")
    found = re.search(r"```python\n(.*?)```", section("Predictions in other tools"), re.DOTALL)
    assert found is not None
    names: dict[str, pd.DataFrame] = {}
    exec(compile(found[1], "data.md", "exec"), names)
    assert list(names["table"].columns) == [*GENES, "x", "y"]
    assert isinstance(names["adata"], anndata.AnnData)
