"""Slides whose embeddings stay in their files: the same training, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import write_slide

from stflow_graph.config import load_config
from stflow_graph.data.load import load_slide
from stflow_graph.data.stored_embeddings import StoredEmbeddings
from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import sha256
from stflow_graph.stages import train as stage
from stflow_graph.stages.train import train
from stflow_graph.training import fold as module
from stflow_graph.training.slide_cache import MadeOnDemand, SlideCache


def run(cohort, out, **values):
    settings = {**cohort.settings, **{k.replace("__", "."): v for k, v in values.items()}}
    train(load_config(None, settings), out)
    checkpoint = out / ("fold0" if values.get("train__folds") != "all" else "all") / "checkpoint"
    return {file.name: sha256(file) for file in sorted(checkpoint.glob("*.safetensors"))}


@pytest.fixture
def reads(monkeypatch):
    """Numbers of times that embeddings were read from their files again."""
    found: list[str] = []
    read = StoredEmbeddings.read

    def counted(self):
        found.append(self.path.stem)
        return read(self)

    monkeypatch.setattr(StoredEmbeddings, "read", counted)
    return found


CASES = {
    "default": {"train__members": 2},
    "all": {"train__members": 2, "train__folds": "all"},
    "strips": {"train__folds": [0], "slides": 2},
    "regions": {"train__max_spots_per_batch": 20, "train__batch_size": 2},
    "spot": {"flow__kind": "spot"},
    "transformer": {"denoiser__name": "transformer", "train__members": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n_bytes", [0, 2**29])
def test_a_run_is_the_same_to_the_last_bit(cohort, tmp_path, monkeypatch, reads, case, n_bytes):
    values = dict(CASES[case])
    if values.pop("slides", None):  # one or two slides are cut into strips
        for side in ("train", "test"):
            file = cohort.root / f"splits/{side}_0.csv"
            file.write_text("\n".join(file.read_text().splitlines()[:3]) + "\n")
    whole = run(cohort, tmp_path / "whole", **values)
    assert not reads
    monkeypatch.setattr(stage, "_MEMORY_SHARE", 0.0)
    monkeypatch.setattr(module, "_CACHED", n_bytes)
    assert run(cohort, tmp_path / "stored", **values) == whole
    assert len(whole) >= 3
    n_slides = len(set(reads))
    assert n_slides >= 2
    if not n_bytes:  # nothing is kept: at least once in every epoch
        assert len(reads) > 3 * n_slides


def test_few_bytes_are_kept_for_the_slides_used_last(monkeypatch):
    made: list[int] = []

    def make(number: int):
        from torch_geometric.data import Data

        made.append(number)
        return Data(x=torch.zeros(10, 10), n=number)

    cache = SlideCache(make, 1000)
    for number in (1, 2, 1, 3, 1, 2):
        assert cache(number).n == number
    assert made == [1, 2, 3, 2]  # two of 400 bytes fit; 2 was used before 1
    keeps_all = SlideCache(make)
    for number in [*range(9), *range(9)]:
        keeps_all(number)
    assert made[4:] == [*range(9)]


def test_what_is_made_on_demand_is_a_sequence():
    made = MadeOnDemand(lambda n: n * 10, [1, 2, 3, 4])
    assert (len(made), made[1], list(made)) == (4, 20, [10, 20, 30, 40])
    assert isinstance(made[1::2], MadeOnDemand)
    assert list(made[1::2]) == [20, 40]


def stored(cohort, **options):
    return load_slide(cohort.embedding("A"), cohort.expression("A"), in_memory=False, **options)


def test_every_access_reads_the_file(cohort, reads):
    kept = load_slide(cohort.embedding("A"), cohort.expression("A"))
    slide = stored(cohort)
    assert (slide.is_stored, kept.is_stored, slide.width, reads) == (True, False, kept.width, [])
    np.testing.assert_array_equal(slide.x, kept.x)
    rows = np.array([5, 1, 9])
    part = slide.take(rows).take(np.array([2, 0]))
    assert part.is_stored
    assert reads == ["A"]
    np.testing.assert_array_equal(part.x, kept.x[[9, 5]])
    np.testing.assert_array_equal(part.y, kept.y[[9, 5]])
    assert reads == ["A", "A"]
    assert slide.x is not slide.x
    (block,) = slide.blocks()
    np.testing.assert_array_equal(block[1], kept.x)


def test_a_file_that_is_replaced_is_refused(cohort):
    slide = stored(cohort)
    write_slide(cohort.embedding("A"), cohort.expression("A"), 36, seed=9)
    with pytest.raises(BadInput, match="another one than at first"):
        _ = slide.x
    cohort.embedding("A").unlink()
    with pytest.raises(BadInput):
        _ = slide.x


def test_files_that_fit_are_kept(cohort, tmp_path, monkeypatch, reads):
    size = sum(cohort.embedding(name).stat().st_size for name in "BCD")  # of fold 0
    copies = 2 + 3  # as they are, scaled, and the averages of three hops
    monkeypatch.setattr(stage, "available_memory", lambda: int(copies * size / 0.4) + 9)
    settings = {"denoiser__context_hops": (1, 2, 3)}
    run(cohort, tmp_path / "fits", **settings)
    assert not reads
    monkeypatch.setattr(stage, "available_memory", lambda: int(copies * size / 0.4) - 9)
    run(cohort, tmp_path / "does not", **settings)
    assert reads
