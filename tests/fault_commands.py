"""The commands that write, as tests of faults run them, and the inputs that they share."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from predicted import predicted
from toy import GENES, Cohort, write_cohort, write_images

from stflow_graph.config import load_config
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.train import train


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to fail.

    Attributes:
        arguments: given the inputs' folder and the output's.
        before: puts what is there before into the output's folder, given the inputs'.
    """

    arguments: Callable[[Path, Path], list[object]]
    before: Callable[[Path, Path], object] = lambda inputs, out: None


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
        for ending in ("csv", "csv.gz", "parquet")
    },
}
EMBED = ["--encoder", "toy:toy_encoder", "--device", "cpu"]


def write_inputs(folder: Path) -> None:
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
    torch.manual_seed(0)
    torch.save(TransformerDenoiser(6, len(GENES), 16, 16, 2, 1).state_dict(), folder / "model.pt")
    write_kit(folder / "kit")
    simulate_cohort(folder / "simulated", n_slides=2, n_spots=3, n_folds=2)


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
