"""What the README shows works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from stflow_graph.config import load_config
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.train import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippet(heading: str, language: str) -> str:
    found = re.search(rf"#+ {heading}\n.*?```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None, heading
    return found[1]


def test_the_python_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate_cohort("ROOT", n_slides=4, n_spots=16, seed=1)
    code = snippet("In Python", "python").replace("epochs=30", "epochs=1, members=1")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["prediction"].shape == (16, 50)
    assert "noise ceiling" in names["scores"].index
    assert repr(names["model"]).startswith("SlideModel(50 genes")


def test_the_layer_of_ones_own_trains(cohort, tmp_path, monkeypatch):
    (tmp_path / "my_layer.py").write_text(snippet("A layer of your own", "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    values = {"denoiser.conv": "my_layer:MyConv", "train.epochs": 1}
    (result,) = train(load_config(None, {**cohort.settings, **values}), tmp_path / "run")
    assert [record.epoch for record in result.best] == [1]


def test_the_configuration_shown_is_one(cohort, tmp_path):
    (tmp_path / "c.toml").write_text(snippet("From slides to predictions", "toml"))
    assert load_config(tmp_path / "c.toml", cohort.settings).denoiser.conv == "my_layer:MyConv"


def test_it_is_short_and_its_files_exist():
    assert len(README.splitlines()) <= 200
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
