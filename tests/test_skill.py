"""The commands of SKILL.md work as shown, and it describes all of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from command_line import cli
from fault_commands import write_kit
from imaged import write_imaged
from stflow_graph_cli.main import app
from toy import toy_encoder
from typer.main import get_command

__all__ = ["cli"]
ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "SKILL.md").read_text(encoding="utf-8")
GROUP = get_command(app)


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found[1]


def commands(heading: str) -> list[list[str]]:
    """Return the words of all commands in a section's blocks of bash."""
    blocks = re.findall(r"```bash\n(.*?)```", section(heading), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    assert all(line.startswith("stflow-graph ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def run_all(cli, heading: str) -> list[list[dict]]:
    """Run a section's commands; return the results of each."""
    results = []
    for words in commands(heading):
        run = cli(*words)
        assert run.code == 0, (words, run)
        found = json.loads(run.out)
        assert found["command"] == words[0]
        results.append(found["results"])
    return results


def test_predict_slides(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_imaged(tmp_path)
    Path("run").rename("RUN")
    monkeypatch.setattr("stflow_graph.encoders.create_encoder", lambda *_: toy_encoder())
    _, (plan,), slides, *parts, again, _ = run_all(cli, "Predict slides")
    assert plan["n_spots"] == sum(slide["n_spots"] for slide in slides)
    assert plan["seconds"] > 0
    assert [slide["slide"] for slide in slides] == ["S0", "S1", "S2", "S3"]
    assert sorted(slide["slide"] for part in parts for slide in part) == ["S0", "S1", "S2", "S3"]
    assert all(slide["up_to_date"] for slide in again)
    names = {"report.html", "report-1-of-2.html", "report-2-of-2.html"}
    assert {path.name for path in Path("predictions").glob("*.html")} == names


def test_train_a_model(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_kit(tmp_path / "SLIDES")
    results = run_all(cli, "Train a model")
    assert len(results) == len(commands("Train a model")) == 9
    assert all(results)


def test_the_python_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the environment need not be activated, as `make test` does not
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    found = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(compile(found[1], "SKILL.md", "exec"), names)
    assert names["failed"] == []


def test_the_example_has_the_fields_of_a_record():
    from stflow_graph.inference.sampling import Sampled

    found = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    (record,) = json.loads(found[1])["results"]
    assert record.keys() == set(Sampled.__dataclass_fields__)


def test_it_has_front_matter_and_every_command():
    head = re.match(r"---\nname: ([a-z-]+)\ndescription: >-\n((?:  .+\n)+)---\n", TEXT)
    assert head is not None
    assert head[1] == "stflow-graph"
    assert len(" ".join(head[2].split())) <= 1024
    for name in GROUP.commands:
        assert f"`{name}" in section("Which command"), name
        assert f"`{name}" in section("What comes back"), name
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)", TEXT))))
def test_every_option_named_is_one(option):
    assert option == "--help" or any(
        option in p.opts for c in GROUP.commands.values() for p in c.params
    )


def test_every_exit_code_is_there():
    from stflow_graph import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.StflowError)}
    found = re.findall(
        r"^\| ([\d, ]+?)(?:, or no output)? \|", section("Exit codes, and what to do"), re.M
    )
    assert codes <= {int(code) for codes in found for code in codes.split(",")}
