"""Projections of embeddings: the same values however many passes they are made in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from linear import CHANNELS, checkpoint_of
from toy import write_slide

from stflow_graph.data.load import load_slide
from stflow_graph.inference import projections as module
from stflow_graph.inference.projections import Columns, Projections
from stflow_graph.io.embeddings import EmbeddingFile, open_embeddings
from stflow_graph.models.checkpoint import Checkpoint
from stflow_graph.nn.encoder import GraphEncoder

N, MEMBERS = 36, 3
SCALINGS = ["center", "slide", "train", "none"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_slide(tmp_path / "A.h5", None, N, seed=0, channels=CHANNELS)
    return tmp_path / "A.h5"


@pytest.fixture
def count_reads(monkeypatch) -> Callable[[], int]:
    """Make every block 5 rows of a file; return what counts the passes over a file."""
    reads, blocks = [], EmbeddingFile.blocks

    def counted(source: EmbeddingFile, n_rows: int | None = None):
        reads.append(source)
        return blocks(source, n_rows or 5)

    monkeypatch.setattr(EmbeddingFile, "blocks", counted)
    return lambda: len(reads)


def encoders_of(checkpoint: Checkpoint) -> list[GraphEncoder]:
    return [member.encoder for member in checkpoint.build()]


def whole(taken: list[Columns], rows: torch.Tensor | None = None) -> np.ndarray:
    """Return projections ``[N, P]``, put together from some columns of each distance."""
    ends = [(columns.start, columns.stop) for columns, _ in taken]
    assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
    rows = torch.arange(N) if rows is None else rows
    distances = zip(*(of_columns for _, of_columns in taken), strict=True)
    return torch.cat([part.of(rows) for each in distances for part in each], dim=1).numpy()


def expected(checkpoint: Checkpoint, file: Path) -> list[np.ndarray]:
    """Return the projections in float64, of the embeddings scaled in memory."""
    scaling, x = checkpoint.normalisation, load_slide(file).x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    shift, divisor = {
        "center": (mean, np.sqrt((std**2).mean())),
        "slide": (mean, std),
        "train": (scaling.x_mean, scaling.x_std),
        "none": (0, 1),
    }[scaling.standardize]
    weights = [encoder.project_weight.double().numpy() for encoder in encoders_of(checkpoint)]
    return [(x - shift) / divisor @ weight.T for weight in weights]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("n_columns", [3, 1000])
@pytest.mark.parametrize("at_a_time", [1, 2, 3])
@pytest.mark.parametrize("standardize", SCALINGS)
@torch.inference_mode()
def test_values_and_passes(file, count_reads, monkeypatch, standardize, at_a_time, n_columns, kept):
    checkpoint = checkpoint_of(n_members=MEMBERS, data__standardize=standardize)
    encoders = encoders_of(checkpoint)
    one = 4 * N * encoders[0].project_weight.size(0)
    monkeypatch.setattr(module, "_PROJECTED_BYTES", at_a_time * one)
    monkeypatch.setattr(module, "_KEEP_BYTES", 4 * N * CHANNELS - (not kept))
    monkeypatch.setattr("stflow_graph.flow.field._AVERAGED", n_columns * N)
    rows = torch.randperm(N)
    with open_embeddings(file) as source:
        scaling = checkpoint.normalisation
        made = Projections(source, encoders, scaling, "float32")
        found = [whole(made.take(i), rows) for i in range(MEMBERS)]
        place = made.place().numpy()
    n_passes = -(-MEMBERS // at_a_time) + (standardize == "slide")
    assert count_reads() == (1 if kept else n_passes)
    for one, other in zip(found, expected(checkpoint, file), strict=True):
        np.testing.assert_allclose(one, other[rows], atol=2e-5)
    mean = load_slide(file).x.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(place, checkpoint.normalisation.place(mean), rtol=1e-5)


@pytest.mark.parametrize("standardize", ["center", "slide", "train"])
@torch.inference_mode()
def test_a_large_level_costs_no_digits(file, standardize):
    """Sums of numbers of 1,000 would be right to 1e-4 only."""
    checkpoint, slide = checkpoint_of(n_members=1, data__standardize=standardize), load_slide(file)
    near = np.round(slide.x * 1024) / 1024  # a sum with the level is exact
    here, at_level = (
        Projections(
            dataclasses.replace(slide, x=(near + level).astype(np.float32)),
            encoders_of(checkpoint),
            dataclasses.replace(
                checkpoint.normalisation, x_mean=checkpoint.normalisation.x_mean + level
            ),
            "float32",
        ).take(0)
        for level in (0, 1000)
    )
    np.testing.assert_allclose(whole(at_level), whole(here), atol=2e-4)


@torch.inference_mode()
def test_what_was_taken_is_made_again_when_it_is_asked_for_again(file, count_reads):
    checkpoint = checkpoint_of(n_members=MEMBERS)
    with open_embeddings(file) as source:
        made = Projections(source, encoders_of(checkpoint), checkpoint.normalisation, "float32")
        first = [whole(made.take(i)) for i in (0, 1, 1, 2)]
    assert count_reads() == 2
    np.testing.assert_allclose(first[1], first[2], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_in_bfloat16_products_are_rounded_and_results_float32(file):
    checkpoint = checkpoint_of(n_members=1)
    encoders = encoders_of(checkpoint)
    with open_embeddings(file) as source:
        low, full = (
            whole(Projections(source, encoders, checkpoint.normalisation, each).take(0))
            for each in ("bf16", "float32")
        )
    assert low.dtype == np.float32
    assert 1e-4 < np.linalg.norm(low - full) / np.linalg.norm(full) < 0.02
