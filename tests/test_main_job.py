"""The scripts of the main job, whole: minutes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real import BENCH, EMBEDDINGS, ROOT, needs_real_slides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(script: str, *arguments: object) -> str:
    """Run a script of benchmarks/; what it printed."""
    command = ["bash", str(ROOT / "benchmarks" / script), *map(str, arguments)]
    stflow = str(Path(sys.executable).with_name("stflow-graph"))
    done = subprocess.run(
        command, env={**os.environ, "STFLOW": stflow}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mean_scores(folder: Path) -> dict[str, float]:
    """Mean PCC of each row of an evaluation over its slides."""
    table = json.loads((folder / "metrics.json").read_text())["table"]
    rows = {row["name"]: list(row["pearson"].values()) for row in table}
    return {name: float(np.mean(row)) for name, row in rows.items() if None not in row}


def test_the_demo_beats_its_baselines_and_prints_its_report(tmp_path):
    stflow = Path(sys.executable).with_name("stflow-graph")
    printed = run("demo.sh", stflow, tmp_path / "demo")
    scores = mean_scores(tmp_path / "demo" / "run" / "eval")
    for baseline in ("ridge", "smoothed ridge", "tuned ridge", "darkness"):
        assert scores["graph"] > scores[baseline] + 0.03
    assert scores["graph"] > scores["context ridge"]
    assert scores["graph"] < scores["true mean (simulator)"]
    assert (tmp_path / "demo" / "run" / "eval" / "report.html").exists()
    assert "report.html" in printed.splitlines()[-1]


@needs_real_slides
def test_on_real_slides_the_graph_denoiser_beats_ridge_and_smoothed_ridge(tmp_path):
    run("main_job.sh", BENCH, EMBEDDINGS, tmp_path, 0, 2)
    scores = mean_scores(tmp_path / "eval-seed0")
    assert scores["graph"] > scores["smoothed ridge"] + 0.03
    assert scores["graph"] > scores["ridge"] + 0.03
    assert scores["transformer"] > scores["ridge"]
