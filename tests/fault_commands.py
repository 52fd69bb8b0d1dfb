"""Commands on tiny inputs, run in processes forked from a warm one, to be failed and killed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imaged import write_imaged
from PIL import Image
from predicted import predicted
from toy import GENES, Cohort, toy_encoder, write_cohort, write_images

from stflow_graph.config import load_config
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.preparation.slide_places import slides_of
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.predict import PredictSettings, predict
from stflow_graph.stages.summarise import summarise
from stflow_graph.stages.train import train

# files that a run changes as it goes on, or removes at its end
INTERIM = ("config.toml", "provenance.json", "embeddings/")
# logs that are appended to, and files with the time that work took
NOT_COMPARED = ("tensorboard/", "history.csv", "result.json", "state-", ".log")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to fail.

    Attributes:
        arguments: given the inputs' folder and the output's.
        before: puts what is there before into the output's folder, given the inputs'.
        needs: a package that may not be installed.
    """

    arguments: Callable[[Path, Path], list[object]]
    before: Callable[[Path, Path], object] = lambda inputs, out: None
    needs: str = ""


def of_cohort(*names: str) -> Callable[[Path, Path], object]:
    def copy(inputs: Path, out: Path) -> None:
        for name in names:
            source = inputs / "cohort" / name
            copying = shutil.copytree if source.is_dir() else shutil.copy
            copying(source, out / name)

    return copy


TINY = ["denoiser.hidden_channels=8", "train.flow_steps=2", "train.regions_per_slide=1"]
TRAIN = ["--encoder", "toy", "--folds", 0, "--members", 1, "--epochs", 2, "--n-layers", 1]
COMMANDS = {
    "simulate": Command(
        lambda i, o: ["simulate", o / "c", "--slides", 2, "--folds", 2, "--spots", 3]
    ),
    "simulate again": Command(
        lambda i, o: [*COMMANDS["simulate"].arguments(i, o), "--seed", 1, "--overwrite"],
        lambda i, o: shutil.copytree(i / "simulated", o / "c"),
    ),
    "prepare": Command(
        lambda i, o: ["prepare", i / "kit", "--out", o, "--patch-px", 16, "--patch-um", 10]
    ),
    "embed": Command(
        lambda i, o: ["embed", *sorted((i / "patches").glob("*")), "--out", o, *EMBED]
    ),
    "embed again": Command(
        lambda i, o: [*COMMANDS["embed"].arguments(i, o), "--overwrite"],
        lambda i, o: shutil.copy(i / "old.h5", o / "p0.h5"),
    ),
    "split": Command(
        lambda i, o: ["split", o, "--k", 2, "--table", i / "patients.csv"], of_cohort("adata")
    ),
    "split again": Command(
        lambda i, o: ["split", o, "--k", 2, "--table", i / "patients.csv", "--overwrite"],
        of_cohort("adata", "splits"),
    ),
    "genes": Command(lambda i, o: ["genes", o, "--n-genes", 3], of_cohort("adata", "splits")),
    "train": Command(
        lambda i, o: [
            *["train", "--source-dataroot", i / "cohort", "--embed-dataroot", i / "embeddings"],
            *["--out", o / "run", *TRAIN, "--set", *TINY],
        ]
    ),
    "sample": Command(
        lambda i, o: [
            *["sample", i / "run", i / "embeddings/cohort/toy/fp32/A.h5", "--out", o],
            *["--n-samples", 2],
        ]
    ),
    "predict": Command(
        lambda i, o: [
            *["predict", i / "imaged/images/S3.svs", "--model", i / "imaged/run", "--out", o],
            *["--n-samples", 2, "--pitch-um", 60, *EMBED],
        ]
    ),
    "predict again": Command(
        lambda i, o: [*COMMANDS["predict"].arguments(i, o), "--overwrite"],
        lambda i, o: shutil.copytree(i / "imaged/out", o, dirs_exist_ok=True),
    ),
    "sample again": Command(
        lambda i, o: [*COMMANDS["sample"].arguments(i, o), "--overwrite"],
        lambda i, o: shutil.copy(i / "predictions/A.h5ad", o / "A.h5ad"),
    ),
    "eval": Command(
        lambda i, o: [
            *["eval", i / "predictions", "--truth", i / "cohort", "--out", o / "eval"],
            *["--n-bootstrap", 2],
        ]
    ),
    "summarise": Command(
        lambda i, o: [
            *["summarise", i / "predictions", "--out", o / "summary", "--domains", 2],
            *["--patients", i / "patients.csv", "--gene-sets", i / "sets.gmt"],
        ]
    ),
    "summarise again": Command(
        lambda i, o: COMMANDS["summarise"].arguments(i, o),
        lambda i, o: shutil.copytree(i / "summary", o / "summary"),
    ),
    "probe": Command(
        lambda i, o: [
            *["probe", "--source-dataroot", i / "cohort", "--embed-dataroot", i / "embeddings"],
            *["--encoders", "toy", "--pca", 2, "--out", o],
        ]
    ),
    "convert": Command(lambda i, o: ["convert", i / "model.pt", o / "checkpoint"]),
    "convert again": Command(
        lambda i, o: COMMANDS["convert"].arguments(i, o),
        lambda i, o: shutil.copytree(i / "run/fold0/checkpoint", o / "checkpoint"),
    ),
    **{
        f"export {ending}": Command(
            lambda i, o, ending=ending: [
                *["export", i / "predictions/A.h5ad", "--to", o / f"A.{ending}", "--overwrite"]
            ],
            lambda i, o, ending=ending: (o / f"A.{ending}").write_text("old"),
        )
        for ending in ("csv", "csv.gz", "parquet", "geojson", "loupe.csv")
    },
    "export zarr": Command(
        lambda i, o: ["export", i / "predictions/A.h5ad", "--to", o / "A.zarr", "--overwrite"],
        needs="spatialdata",
    ),
}
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(command.needs) and importlib.util.find_spec(command.needs) is None,
            reason=f"needs the package {command.needs}",
        ),
    )
    for name, command in COMMANDS.items()
]
NO_FAULT = {"for_ever": 0, "number": 0, "kind": 0, "calls": 63, "when": 0}
EMBED = ["--encoder", "toy:toy_encoder", "--device", "cpu"]


def write_inputs(folder: Path) -> Path:
    """Write the inputs of all commands, which no command changes."""
    cohort = write_cohort(folder)
    assert cohort == Cohort.of(folder)
    settings = dict(pair.split("=") for pair in TINY)
    values = {**cohort.settings, **settings, "train.epochs": 1}
    train(load_config(None, values), folder / "run")
    predicted(cohort, "A", n_samples=2).write(folder / "predictions/A.h5ad")
    for i in range(2):
        write_images(folder / f"patches/p{i}.h5", seed=i)
    shutil.copy(cohort.embedding("B"), folder / "old.h5")
    (folder / "patients.csv").write_text("sample_id,patient\nA,1\nB,2\nC,3\nD,4\n")
    (folder / "sets.gmt").write_text("S1\tof genes\tG0\tG3\nS2\tof genes\tG1\tABC\n")
    summarise([folder / "predictions"], folder / "summary")
    torch.manual_seed(0)
    torch.save(TransformerDenoiser(6, len(GENES), 16, 16, 2, 1).state_dict(), folder / "model.pt")
    write_kit(folder / "kit")
    (folder / "imaged").mkdir()
    write_imaged(folder / "imaged")
    predict(
        slides_of(folder / "imaged/images/S3.svs"),
        folder / "imaged/run",
        folder / "imaged/out",
        toy_encoder(),
        PredictSettings(SampleSettings(seed=1), pitch_um=60.0),
    )
    simulate_cohort(folder / "simulated", n_slides=2, n_spots=3, n_folds=2)
    return folder


def write_kit(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / "S0.png")
    (folder / "S0.csv").write_text("barcode,x,y\na,5,30\nb,30,30\nc,30,50\n")
    rows = [",".join([b, *map(str, rng.poisson(2, 60) + 1)]) for b in "abc"]
    head = ",".join(["", *(f"g{i}" for i in range(60))])
    (folder / "counts.csv").write_text("\n".join([head, *rows]) + "\n")
    row = "S0,S0.png,counts.csv,S0.csv,0.5"
    (folder / "dataset.csv").write_text(f"id,image,counts,spots,um_per_px\n{row}\n")


class Trials:
    """Runs commands with faults in a folder of their own."""

    def __init__(self, driver: subprocess.Popen[str], inputs: Path, folder: Path) -> None:
        self._driver, self.inputs, self._folder = driver, inputs, folder
        self.out = folder / "out"

    def reset(self, command: Command) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        command.before(self.inputs, self.out)

    def run(
        self, command: Command, *, kill_after: float | None = None, **fault: int
    ) -> dict[str, Any]:
        """Run a command, to be killed after some seconds, or with a fault.

        Returns:
            The exit code, how many operations were counted and hit, seconds, and standard error.
        """
        log = self._folder / "stderr.txt"
        job = {
            **self._job(command.arguments(self.inputs, self.out), log),
            "kill_after": kill_after,
            "fault": {**NO_FAULT, **fault},
        }
        return {**self._ask(job), "error": log.read_text()}

    def run_in_containers(self, *commands: list[object]) -> list[tuple[int, str]]:
        """Run commands at the same time, each as PID 1 of the namespaces of a host ``node<i>``.

        Returns:
            Exit code and standard error of each.
        """
        logs = [self._folder / f"stderr{i}.txt" for i in range(len(commands))]
        jobs = [
            {**self._job(command, log), "host": f"node{i}", "fault": NO_FAULT}
            for i, (command, log) in enumerate(zip(commands, logs, strict=True))
        ]
        codes = self._ask(jobs)
        return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]

    def _job(self, arguments: list[object], log: Path) -> dict[str, Any]:
        return {"arguments": [*map(str, arguments)], "folder": str(self.out), "log": str(log)}

    def _ask(self, job: object) -> Any:
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(job) + "\n")
        self._driver.stdin.flush()
        return json.loads(self._driver.stdout.readline())

    def files(self) -> dict[str, str]:
        """Return the hash of every file in the output's folder, by name."""
        return {
            str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and not any(name in str(path) for name in NOT_COMPARED)
        }


def errors(found: dict[str, Any]) -> list[str]:
    """Return the lines on standard error, without warnings and what progress bars leave."""
    lines = found["error"].splitlines()
    return [line for line in lines if line.strip() and not line.startswith("WARNING")]


def is_leftover(name: str) -> bool:
    """Return whether a file is unfinished, or in an unfinished folder, or a lock."""
    return ".stflow-" in name or ".train.lock" in name


def check_files(trials: Trials, kind: str, old: dict[str, str], new: dict[str, str]) -> None:
    """Check that every file is absent, as it was or as it will be, and that all else is gone."""
    for name, content in trials.files().items():
        if is_leftover(name):
            assert kind == "kill", name
        elif not any(part in name for part in INTERIM):
            assert content in (old.get(name), new.get(name)), name
    assert kind == "kill" or not any(map(is_leftover, trials.files()))
