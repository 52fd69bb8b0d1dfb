from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

SUMMARISE = Path(__file__).resolve().parents[1] / "benchmarks" / "summarise.py"


def write(folder: Path, scores: dict[str, dict[str, float | None]], slides: list[str]) -> Path:
    folder.mkdir()
    table = [{"name": name, "pearson": values} for name, values in scores.items()]
    protocol = {"slides": dict.fromkeys(slides), "target": "log1p"}
    (folder / "metrics.json").write_text(json.dumps({"protocol": protocol, "table": table}))
    return folder


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUMMARISE), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mean_and_deviation_over_seeds(tmp_path):
    scores = [(0.2, 0.6), (0.4, 0.6)]
    folders = [
        write(
            tmp_path / f"{i}",
            {"graph": {"A": a, "B": b}, "gene mean": {"A": None, "B": None}},
            ["A", "B"],
        )
        for i, (a, b) in enumerate(scores)
    ]
    out = run(*folders).stdout
    deviation = np.std([0.2, 0.4], ddof=1)
    assert f"0.300 ± {deviation:.3f}" in out
    assert "0.600" in out
    assert f"0.450 ± {deviation / 2:.3f}" in out
    assert "gene mean" not in out


def test_other_slides_are_refused(tmp_path):
    a = write(tmp_path / "a", {"graph": {"A": 0.1}}, ["A"])
    b = write(tmp_path / "b", {"graph": {"B": 0.1}}, ["B"])
    done = run(a, b)
    assert done.returncode == 1
    assert "other slides" in done.stderr
