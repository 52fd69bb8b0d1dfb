"""Rows 7 to 9 and 30 to 44 of the catalogue of faults: numbers, processes, resources.

A row that has a file of tests to itself is named at the end.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from artefacts import edit_h5
from command_line import refused

from stflow_graph.io.process import Place
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene

TESTS = Path(__file__).parents[1]
EMBEDDING = "embeddings/cohort/toy/fp32/A.h5"
TRAIN = ["train", "--source-dataroot", "cohort", "--embed-dataroot", "embeddings"]
TRAIN += [*"--encoder toy --folds 0 --members 1 --epochs 2 --out out --set".split()]
TRAIN += ["denoiser.hidden_channels=8", "train.flow_steps=2", "train.regions_per_slide=1"]
SAMPLE = ["sample", "run", EMBEDDING, "--out", "out"]
EVAL = ["eval", "predictions/A.h5ad", "--truth", "cohort", "--n-bootstrap", "2", "--out", "out"]
EMBED = ["embed", "patches/p0.h5", "--encoder", "toy:toy_encoder", "--device", "cpu"]
EMBED += ["--out", "out"]


def in_a_process(*arguments: str, before=None, **options) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])
    command = [sys.executable, "-m", "stflow_graph_cli", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300", "OMP_NUM_THREADS": "1"},
        capture_output="stdout" not in options,
        text=True,
        check=False,
        preexec_fn=before,
        **options,
    )


# files


def test_07_a_reader_of_the_old_file_and_a_writer_of_the_new_do_not_meet(cli, here):
    assert cli(*SAMPLE).code == 0
    with h5py.File(here / "out/A.h5ad") as file:
        before = file["X"][()]
        assert cli(*SAMPLE, "--overwrite", "--n-samples", "2").code == 0
        assert np.array_equal(file["X"][()], before)
    assert "sample_0" in anndata.read_h5ad(here / "out/A.h5ad").layers


def test_09_what_a_dead_process_left_is_swept(cli, here):
    (here / "out").mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    place = Place.here().token
    left, mine = (
        here / "out" / f".{name}.h5ad.stflow-{place}-{pid}-0123ab.tmp"
        for name, pid in (("A", process.pid), ("B", os.getpid()))
    )
    for file in (left, mine):
        file.write_bytes(b"half")
    assert cli(*SAMPLE).code == 0
    assert (left.exists(), mine.exists()) == (False, True)


# numbers


def test_31_constant_genes_are_left_out_and_counted():
    truth = np.c_[np.arange(5.0), np.ones(5)]
    scores = pearson_per_gene(truth + [[0, 1]], truth)
    assert (scores[0], np.isnan(scores[1])) == (pytest.approx(1), True)
    assert mean_of_defined(scores) == pytest.approx(1)


def test_33_embeddings_beyond_float32_are_refused(cli, here):
    edit_h5(here / EMBEDDING, "embeddings", lambda x: x.astype(float) * 1e25)
    refused(cli(*SAMPLE), 3, EMBEDDING)


def test_34_indices_are_of_64_bits_and_graphs_have_a_bound(cli, here):
    from stflow_graph.graph import nearest_neighbors

    assert nearest_neighbors(torch.rand(9, 2), 3).edge_index.dtype == torch.int64
    refused(cli(*TRAIN, "graph.n_neighbors=1000000"), 4, "graph.n_neighbors")


# processes


def killed(*arguments: object) -> None:
    os.kill(os.getpid(), 9)


def test_37_a_reader_that_is_killed_is_named(cli, here, monkeypatch):
    monkeypatch.setattr("stflow_graph.preparation.patch_sources.read_images", killed)
    refused(cli(*EMBED, "--workers", "1"), 75, "patches/p0.h5", "memory")


def test_38_a_run_goes_on_with_its_own_settings_only(cli, here):
    assert cli(*TRAIN).code == 0
    refused(cli(*TRAIN, "train.lr=0.5"), 4, "lr", "0.5")


def test_39_clocks_and_the_current_folder_play_no_part(cli, here, monkeypatch):
    assert cli(*SAMPLE).code == 0
    content = (here / "out/A.h5ad").read_bytes()
    for file in here.rglob("*"):
        os.utime(file, (time.time() + 1e8,) * 2)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    elsewhere = [f"../{a}" if (here / a).exists() else a for a in SAMPLE[1:]]
    assert cli("sample", *elsewhere).code == 0
    assert (here / "out/A.h5ad").read_bytes() == content
    assert cli("sample", *elsewhere, "--overwrite").code == 0
    assert anndata.read_h5ad(here / "out/A.h5ad").X.any()


# resources


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("could not create a primitive"),
    ],
)
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (SAMPLE, "stflow_graph.inference.sampling.open_embeddings"),
        (EVAL, "stflow_graph.evaluation.files.read_prediction"),
        (EMBED, "stflow_graph.preparation.embedding.open_patches"),
    ],
)
def test_42_memory_that_is_short_is_75(cli, here, monkeypatch, command, where, error):
    def short(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(where, short, raising=True)
    refused(cli(*command), 75, "memory")


def test_44_few_files_may_be_open(here):
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = in_a_process(*SAMPLE, before=few)
    assert done.returncode == 0, done.stderr


def test_44_nobody_reads_what_is_printed(here):
    reader, writer = os.pipe()
    os.close(reader)
    done = in_a_process("encoders", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, ""), done  # as other programs, without a word


def test_44_a_folder_that_cannot_be_written_is_named(cli, here):
    refused(cli(*SAMPLE[:-1], "/proc/none"), 3, "/proc/none")


# where the other rows are tested, a file or a test of each
ELSEWHERE = {
    8: "tests/io/test_hdf5_locks.py",
    30: "tests/training/test_loop.py::test_a_loss_that_is_not_finite_ends_the_loop",
    32: "tests/inference/test_predictor.py::test_embeddings_that_overflow_are_refused",
    35: "tests/faults/test_kills.py",
    36: "tests/cli/test_main.py::test_signals_end_a_command_with_one_line",
    40: "tests/faults/test_full_disk.py",
    41: "tests/faults/test_writing.py",
    43: "tests/inference/test_stream.py::test_out_of_memory_halves_the_tiles",
}


@pytest.mark.parametrize("number", ELSEWHERE)
def test_rows_with_a_file_of_their_own(number):
    file, _, test = ELSEWHERE[number].partition("::")
    assert f"def {test or 'test_'}" in (TESTS.parent / file).read_text()


def test_every_row_has_a_test():
    found = set(ELSEWHERE)
    for file in Path(__file__).parent.glob("test_catalogue_*.py"):
        text = file.read_text()
        found |= {
            int(n) for n in re.findall(r"def test_(\d\d)_|_and_(\d\d)_", text) for n in n if n
        }
        found |= {int(n) for n in re.findall(r"(?:row|in_each)\((\d+), ", text)}
        found |= {int(n) for n in re.findall(r'^    "(\d\d) ', text, flags=re.MULTILINE)}
    assert found == set(range(1, 53))
