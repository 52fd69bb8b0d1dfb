import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from artefacts import write_prediction
from PIL import Image
from toy import GENES

from stflow_graph.config import load_config
from stflow_graph.images.pictures import read_picture
from stflow_graph.io.expression import write_expression
from stflow_graph.io.predictions import read_prediction
from stflow_graph.stages.train import train

CONTENDERS = {
    "transformer, as published",
    "transformer, same graph",
    "graph, stflow mode",
    "graph, in every step",
    "graph, spot flow",
    "graph, default",
}
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch, capsys):
    """Return a function that runs a script of benchmarks/ here and returns what it printed."""
    n_threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        ended = 0
        try:
            runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        except SystemExit as end:
            ended = end.code or 0
        printed = capsys.readouterr()
        if isinstance(ended, str):  # a message, as the interpreter would print it
            printed, ended = type(printed)(printed.out, ended), 1
        assert ended == code, printed.err
        return printed.err if code else printed.out

    yield run
    torch.set_num_threads(n_threads)


def process(name: str, *arguments: object, code: int = 0) -> str:
    """Run a script that starts processes itself; what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def write(folder: Path, scores: dict[str, dict[str, float | None]], slides: list[str]) -> Path:
    folder.mkdir()
    table = [{"name": name, "pearson": values} for name, values in scores.items()]
    protocol = {"slides": dict.fromkeys(slides), "target": "log1p"}
    (folder / "metrics.json").write_text(json.dumps({"protocol": protocol, "table": table}))
    return folder


def test_mean_and_deviation_over_seeds(script, tmp_path):
    scores = [(0.2, 0.6), (0.4, 0.6)]
    folders = [
        write(
            tmp_path / f"{i}",
            {"graph": {"A": a, "B": b}, "gene mean": {"A": None, "B": None}},
            ["A", "B"],
        )
        for i, (a, b) in enumerate(scores)
    ]
    out = script("summarise.py", *folders)
    deviation = np.std([0.2, 0.4], ddof=1)
    assert f"0.300 ± {deviation:.3f}" in out
    assert "0.600" in out
    assert f"0.450 ± {deviation / 2:.3f}" in out
    assert "gene mean" not in out


def test_other_slides_are_refused(script, tmp_path):
    a = write(tmp_path / "a", {"graph": {"A": 0.1}}, ["A"])
    b = write(tmp_path / "b", {"graph": {"B": 0.1}}, ["B"])
    assert "other slides" in script("summarise.py", a, b, code=1)


@pytest.mark.slow
def test_symmetry_shows_the_published_frames_break_on_lattices_and_ours_do_not(script, tmp_path):
    out = script("symmetry.py", "--quick", "--out", tmp_path)
    assert "largest relative change: motions" in out
    rows = json.loads((tmp_path / "symmetry.json").read_text())
    motions = {(row["array"], row["model"]): row["motions"] for row in rows}
    for array in ("hexagonal", "square"):
        assert motions[array, "STFlow k=8"] > 1e-2
    assert max(v for (_, model), v in motions.items() if model.startswith("ours")) < 1e-4
    assert (tmp_path / "lattice.png").stat().st_size > 1000


def test_global_cost_is_measured_and_fitted(script, tmp_path):
    out = script("global_cost.py", "--quick", "--out", tmp_path)
    assert "exponent" in out
    found = json.loads((tmp_path / "global_cost.json").read_text())
    assert set(found["seconds"]) == {"latent", "polynormer"}
    assert (tmp_path / "global_cost.png").stat().st_size > 1000


def test_speed_compares_all_denoisers_with_the_transformer_on_the_same_graph(script, tmp_path):
    out = script("speed.py", "--quick", "--sizes", "60", "90", "--repeats", "1", "--out", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found["seconds"]) == ["60", "90"]
    for rows in found["seconds"].values():
        assert set(rows) == CONTENDERS
        for parts in rows.values():
            assert all(parts[part] > 0 for part in ("call", "sampling", "training step"))
            assert parts["sampling"] > parts["graph"]
        assert {name for name, parts in rows.items() if "step" not in parts} == {"graph, default"}
    assert "floor of a call" in out
    assert (tmp_path / "speed.png").stat().st_size > 1000
    out = script("scaling.py", tmp_path / "speed.json", "--from", "60", "--out", tmp_path)
    assert "exponent of cost, from 60 spots" in out
    assert set(json.loads((tmp_path / "scaling.json").read_text())["exponents"]) == CONTENDERS
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_layer_compares_the_default_layer_with_the_bandwidth_of_a_copy(script, tmp_path):
    out = script("layer.py", "--quick", "--out", tmp_path)
    found = json.loads((tmp_path / "layer.json").read_text())
    assert found["bandwidth"] > 1e7
    passes = ("forward, PyG's operators", "forward and backward, PyG's operators")
    forward, both = (found["passes"][name] for name in passes)
    # 500 spots, 16 channels, 50 genes: states in and out, expression, edges
    assert forward["least"] == 4 * 500 * (2 * 16 + 50) + 36 * found["edges"] + 8 * 500
    for row in (forward, both):
        moved = row["share, least"] * row["seconds"] * found["bandwidth"]
        assert moved == pytest.approx(row["least"])
    assert both["least"] > 2 * forward["least"]
    (kernels,) = found["kernels"].values()
    assert len(kernels) == 5
    assert 0 < sum(kernels.values()) < 10
    assert "500 spots" in out


def test_scaling_finds_the_exponent_that_times_were_made_with(script, tmp_path):
    name = "graph, default"
    sizes = {1000: 9.0, 3000: 3e-6 * 3000**1.2, 10_000: 3e-6 * 10_000**1.2}  # 1,000 is left out
    for i, part in enumerate([[1000, 3000], [10_000]]):
        seconds = {str(n): {name: {"sampling": sizes[n]}} for n in part}
        (tmp_path / f"{i}.json").write_text(json.dumps({"seconds": seconds}))
    script("scaling.py", tmp_path / "0.json", tmp_path / "1.json", "--out", tmp_path)
    found = json.loads((tmp_path / "scaling.json").read_text())["exponents"]
    assert found == {name: {"sampling": pytest.approx(1.2, abs=1e-6)}}
    (tmp_path / "2.json").write_text(json.dumps({"seconds": {}}))
    script("scaling.py", tmp_path / "2.json", "--out", tmp_path, code=2)


@pytest.mark.slow
def test_memory_measures_each_cell_in_a_process_and_streams_slides_from_disk(tmp_path):
    arguments = ["--quick", "--sizes", "60", "--streamed", "200", "--members", "2"]
    arguments += ["--denoisers", "graph, default"]
    out = process("memory.py", *arguments, "--out", tmp_path)
    found = json.loads((tmp_path / "memory.json").read_text())
    for part in ("sampling", "training step"):
        assert set(found["bytes"][part]) == {"transformer, same graph", "graph, default"}
        assert all(v["60"] >= 0 for v in found["bytes"][part].values())
    row = found["streamed"]["200"]
    assert row["bytes"] > 1e8
    assert row["embeddings"] > 200 * 1024 * 4
    assert read_prediction(tmp_path / "predictions" / "slide200.h5ad").mean.shape == (200, 50)
    assert "200 spots" in out


@pytest.mark.slow
def test_limits_of_each_part_are_measured_on_the_same_machine(script, tmp_path):
    out = script("limits.py", "--quick", "--sizes", "60", "--threads", "1", "--out", tmp_path)
    found = json.loads((tmp_path / "limits.json").read_text())
    assert set(found["machine"]) >= {"products", "copy", "disk", "cache", "sha256", "packing"}
    assert all(speed > 1e5 for speed in found["machine"].values())
    parts = {(part["stage"], part["name"]): part for part in found["parts"]}
    of_sample = [part for (stage, _), part in parts.items() if stage == "sample"]
    assert {part["name"] for part in of_sample} >= {"hash", "projection", "graph", "blocks"}
    total = sum(part["seconds"] for part in of_sample if part["name"] != "all")
    assert total == pytest.approx(parts["sample", "all"]["seconds"])
    assert all(part["limit"] > 0 for part in found["parts"] if part["name"] != "other")
    assert "times the limit" in out


@pytest.mark.slow
def test_equality_finds_the_two_denoisers_equal(script):
    out = script("equality.py", "--quick")
    found = [float(number) for number in re.findall(r"\d\.\de[-+]\d\d", out)]
    assert len(found) == 8
    assert max(found) <= 1e-5


@pytest.mark.slow
def test_ablation_changes_one_switch_at_a_time_and_runs_it_once(cohort, tmp_path):
    arguments = ["--root", cohort.root, "--embeddings", cohort.embeddings, "--encoder", "toy"]
    arguments += ["--out", tmp_path / "out", "--folds", "0", "--seeds", "2", "--quick"]
    arguments += ["--levers", "one member", "graph in every step", "no context"]
    first = process("ablation.py", *arguments)
    assert "Δ validation" in first
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert {row["lever"] for row in rows} == {"default", *arguments[-3:]}
    assert len(rows) == 8
    assert {row["lever"]: len(row["best_epochs"]) for row in rows}["one member"] == 1
    assert all(len(row["test"]["A"]) == len(GENES) for row in rows)
    weights = sorted((tmp_path / "out").rglob("model.safetensors"))
    made = [file.stat().st_mtime_ns for file in weights]
    assert len(made) == 8
    assert process("ablation.py", *arguments) == first
    assert [file.stat().st_mtime_ns for file in weights] == made


@pytest.mark.slow
def test_accuracy_compares_all_models_on_all_folds_once(cohort, tmp_path):
    arguments = ["--root", cohort.root, "--embeddings", cohort.embeddings, "--encoder", "toy"]
    arguments += ["--out", tmp_path / "out", "--folds", "0", "1", "--seeds", "2", "--quick"]
    arguments += ["--models", "graph", "one-shot", "--set", "graph.n_neighbors=4"]
    out = process("accuracy.py", *arguments)
    found = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    for target in ("log1p", "log1p_normalised"):
        table = found["targets"][target]["table"]
        for name, seeds in (("graph", 2), ("one-shot", 2), ("simple GNN", 2), ("tuned ridge", 1)):
            assert [len(v) for v in table[name]["slides"].values()] == [seeds, seeds]
        assert table["graph"]["mean"] == pytest.approx(table["one-shot"]["mean"], abs=1e-5)
        assert table["ridge"]["behind"] == pytest.approx(
            table["graph"]["mean"] - table["ridge"]["mean"]
        )
        assert set(found["targets"][target]["coverage"]["graph"]) == {"A", "B"}
    assert "noise ceiling" in out
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000
    runs = sorted((tmp_path / "out").rglob("model.safetensors"))
    made = [file.stat().st_mtime_ns for file in runs]
    assert process("accuracy.py", *arguments) == out
    assert [file.stat().st_mtime_ns for file in runs] == made


def test_regions_compares_ways_of_drawing_on_every_test_slide(script, cohort, tmp_path):
    arguments = ["--root", cohort.root, "--embeddings", cohort.embeddings, "--encoder", "toy"]
    arguments += ["--out", tmp_path, "--folds", "0", "--seeds", "1", "--quick"]
    arguments += ["--models", "spot flow", "one-shot", "--targets", "log1p"]
    arguments += ["--set", "graph.n_neighbors=4", "train.epochs=1", "train.flow_steps=1"]
    out = script("regions.py", *arguments)
    (rows,) = json.loads((tmp_path / "regions.json").read_text())["log1p"].values()
    assert list(rows) == [
        *["graph", "independent spots", "levels, then independent spots", "normal residuals"],
        "spot flow",
    ]
    assert rows["graph"]["difference"] == [0, 0, 0]
    for name, row in rows.items():
        low, middle, high = sorted(row["difference"])
        assert row["difference"] == [middle, low, high]
        energy = row["scores"]["energy, 9 spots"] - rows["graph"]["scores"]["energy, 9 spots"]
        assert middle == pytest.approx(energy), name
        assert 0 <= row["scores"]["centred 9"] <= 1
    assert "levels, then" in out
    assert (tmp_path / "regions.png").stat().st_size > 10_000


@pytest.mark.slow
def test_evidence_scores_what_was_not_measured_beside_kriging(script, cohort, tmp_path):
    quick = {"graph.n_neighbors": 4, "train.epochs": 1, "train.members": 2, "train.folds": [0]}
    paths = {"data.source_dataroot": cohort.root, "data.embed_dataroot": cohort.embeddings}
    settings = {**{k: str(v) for k, v in paths.items()}, "data.encoder": "toy", **quick}
    list(train(load_config(None, settings), tmp_path / "run"))
    arguments = ["--root", cohort.root, "--embeddings", cohort.embeddings, "--repeats", "1"]
    out = script("evidence.py", tmp_path / "run", *arguments, "--out", tmp_path)
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert list(found) == ["A", "mean"]
    assert len(found["A"]) == 5
    for part, row in found["A"].items():
        rivals = ["ridge on genes"] if "genes" in part else ["kriging", "Gaussian process"]
        assert {"model", "nothing observed", *rivals} <= row.keys()
        gain = row["model"]["PCC"] - row["nothing observed"]["PCC"]
        assert row["less nothing"] == pytest.approx([gain] * 3)  # of one repeat
        assert row["model"]["MSE"] > 0
    assert set(found["A"]["0.5"]["coverage"]) == {"1", "9", "slide"}
    assert "kriging" in out


@pytest.mark.slow
def test_panels_compares_ways_of_training_on_slides_that_lack_genes(script, cohort, tmp_path):
    arguments = ["--root", cohort.root, "--embeddings", cohort.embeddings, "--encoder", "toy"]
    out = script(
        "panels.py", *arguments, "--out", tmp_path, "--folds", "0", "--seeds", "1", "--quick"
    )
    found = json.loads((tmp_path / "panels.json").read_text())
    assert list(found) == ["whole", "masked", "whole slides", "common genes"]
    scores = {name: seeds[0][0] for name, seeds in found.items()}
    assert scores["common genes"][1] is None
    assert scores["masked"] != scores["whole"] != scores["whole slides"]
    assert all(-1 <= score <= 1 for name in list(scores)[:3] for score in scores[name])
    assert f"{scores['masked'][1]:.3f}" in out


@pytest.mark.slow
def test_learning_curve_trains_on_more_slides_and_tests_the_same(tmp_path):
    arguments = ["--out", tmp_path, "--slides", "4", "6", "--spots", "30", "--folds", "0"]
    arguments += ["--models", "graph", "--quick"]
    out = process("learning_curve.py", *arguments)
    assert "true mean (simulator)" in out
    found = json.loads((tmp_path / "learning_curve.json").read_text())
    assert list(found) == ["4", "6"]
    for n in found:
        folder = tmp_path / f"{n}-slides" / "log1p" / "graph-seed0"
        assert {file.stem for file in (folder / "predictions").glob("*.h5ad")} == {"S01", "S02"}
        provenance = json.loads((folder / "fold0" / "provenance.json").read_text())
        assert len(provenance["train_slides"]) == int(n)
    assert found["4"]["true mean (simulator)"] == found["6"]["true mean (simulator)"]
    assert found["4"]["ridge"] != found["6"]["ridge"]
    assert (tmp_path / "learning_curve.png").stat().st_size > 1000
    assert process("learning_curve.py", *arguments) == out
    process("learning_curve.py", "--out", tmp_path, "--slides", "8", "--quick", code=1)


@pytest.mark.parametrize("name", ["squidpy_picture.py", "hero_picture.py"])
def test_a_prediction_is_drawn_beside_the_truth(script, tmp_path, name):
    if name.startswith("squidpy"):
        pytest.importorskip("squidpy", reason="needs pip install .[scanpy]")
    pixels = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "he.png")
    coords = np.array([[x, y] for x in (300, 500, 700) for y in (350, 550)])
    counts = np.arange(12).reshape(6, 2)
    barcodes = list("abcdef")
    write_expression(
        tmp_path / "counts.h5ad", sp.csr_matrix(counts), barcodes, ["G0", "G1"], coords, um_per_px=1
    )
    mean = np.log1p(counts)
    write_prediction(
        tmp_path / "A.h5ad",
        mean,
        barcodes,
        ["G0", "G1"],
        coords,
        provenance={"slide": "A", "target": "log1p"},
        samples=np.stack([mean, 2 * mean]),
        expected_pearson=np.array([0.2, 0.3]),
        picture=read_picture(tmp_path / "he.png"),
    )
    files = (tmp_path / file for file in ("A.h5ad", "counts.h5ad", "out.png"))
    out = script(name, *files)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size[0] > 1000
    if name.startswith("hero"):
        assert out == "A, G1: PCC 1.000, 6 spots\n"


def test_steps_samples_a_run_with_other_numbers_of_steps_and_samples(script, cohort, tmp_path):
    settings = {**cohort.settings, "flow.kind": "spot", "flow.n_sample_steps": 3}
    train(load_config(None, settings), tmp_path / "run")
    arguments = [tmp_path / "run", "--out", tmp_path / "out"]
    arguments += ["--steps", "1", "--samples", "4", "20"]
    out = script("steps.py", *arguments)
    found = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert list(found) == ["1 steps, 16 samples", "3 steps, 4 samples", "3 steps, 20 samples"]
    few, four, twenty = found.values()
    assert few["PCC of the mean"] == four["PCC of the mean"]
    assert four["RVD"] == twenty["RVD"]  # of the first sample
    assert few["RVD"] != four["RVD"]
    assert four["CRPS"] > twenty["CRPS"]
    assert "PCC of the samples' mean" in out
