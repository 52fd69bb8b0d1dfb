"""Commands under load: large slides, many slides, many genes, few open files, little memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from artefacts import read_embeddings
from toy import CHANNELS, SLIDES, write_slide

from stflow_graph.data.genes import write_gene_list
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.io.expression import write_expression
from stflow_graph.io.predictions import Block, write_prediction_blocks

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and sizes are Linux's")
GB = 2**30
PROVENANCE = {"slide": "A", "target": "log1p"}
PLACES = ["--source-dataroot", "cohort", "--embed-dataroot", "embeddings", "--encoder", "toy"]
SMALL = [*"--folds 0 --members 1 --epochs 1 --set denoiser.hidden_channels=8".split()]
SMALL += ["train.flow_steps=2", "train.regions_per_slide=1"]


def run(*arguments: object, limit: Callable[[], None] | None = None):
    """Run a command in a process of its own; return it and its seconds."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stflow_graph_cli", *map(str, arguments)]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    return done, time.perf_counter() - began


def files(n: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))


def memory(n_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_slide_of_200_000_spots_is_scored_in_3_gb(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    n, n_genes, rng = 200_000, 50, np.random.default_rng(0)
    mean = rng.gamma(1.0, 1.0, (n, n_genes)).astype(np.float32)
    side = int(np.ceil(n**0.5))
    coords = np.stack(np.unravel_index(np.arange(n), (side, side)), 1) * 100.0
    barcodes, genes = [f"b{i}" for i in range(n)], [f"G{i}" for i in range(n_genes)]
    counts = sp.csr_matrix(rng.poisson(np.expm1(mean)))
    write_expression("truth/A.h5ad", counts, barcodes, genes, coords, um_per_px=1.0)

    def blocks() -> Iterator[Block]:
        for start in range(0, n, 10_000):
            rows = slice(start, min(start + 10_000, n))
            yield Block(rows, mean[rows], None)

    write_prediction_blocks(
        "A.h5ad", blocks(), barcodes, genes, coords, n_samples=0, provenance=PROVENANCE
    )
    done, seconds = run("eval", "A.h5ad", "--truth", "truth", "--out", "out", limit=memory(3 * GB))
    assert (done.returncode, done.stderr) == (0, ""), done
    with capsys.disabled():
        print(f"\neval of 200,000 x 50: {seconds:.0f} s in 3 GB of address space")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_500_slides_in_one_command_with_64_open_files(here, capsys):
    source = read_embeddings(Path("embeddings/cohort/toy/fp32/A.h5"))
    for i in range(500):
        path = Path(f"many/S{i:03}.h5")
        with write_embeddings(path, source.barcodes, source.coords, CHANNELS, {}) as writer:
            writer.append(source.x + i)
    slides = sorted(Path("many").glob("*.h5"))
    done, seconds = run("sample", "run", *slides, "--out", "out", limit=files(64))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(list(Path("out").glob("*.h5ad"))) == 500
    with capsys.disabled():
        print(f"\nsample of 500 slides, 64 open files: {seconds:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_000_genes_from_training_to_scores(here, capsys):
    genes, rng = [f"G{i}" for i in range(20_000)], np.random.default_rng(0)
    for slide in SLIDES:
        path = Path(f"cohort/adata/{slide}.h5ad")
        adata = anndata.read_h5ad(path)
        counts = sp.csr_matrix(rng.poisson(1.0, (adata.n_obs, len(genes))))
        names, pos = adata.obs_names.tolist(), adata.obsm["spatial"]
        write_expression(path, counts, names, genes, pos, um_per_px=1.0)
    write_gene_list(Path("cohort/var_50genes.json"), genes)
    began = time.perf_counter()
    for arguments in (
        ["train", *PLACES, "--out", "all", *SMALL],
        ["sample", "all", "embeddings/cohort/toy/fp32/A.h5", "--out", "out", "--n-samples", 2],
        ["eval", "out/A.h5ad", "--truth", "cohort", "--out", "scored", "--n-bootstrap", 2],
    ):
        done, _ = run(*arguments, limit=memory(8 * GB))
        assert (done.returncode, done.stderr) == (0, ""), (arguments[0], done)
    assert anndata.read_h5ad("out/A.h5ad").n_vars == 20_000
    with capsys.disabled():
        print(f"\n20,000 genes, train, sample and eval: {time.perf_counter() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", ["sample", "train"])
def test_memory_that_runs_out_is_75_in_one_line(here, command, capsys):
    """Whatever the limit: it works, or it says in one line that memory is short."""
    for slide in SLIDES:
        embedding = Path(f"embeddings/cohort/toy/fp32/{slide}.h5")
        write_slide(embedding, Path(f"cohort/adata/{slide}.h5ad"), 15_000, seed=0)
    arguments = {
        "sample": ["run", "embeddings/cohort/toy/fp32/A.h5", "--n-samples", 16],
        "train": [*PLACES, *SMALL],
    }[command]
    codes = []
    for size in np.arange(1.0, 3.1, 0.25):
        done, _ = run(command, *arguments, "--out", f"out{size}", limit=memory(int(size * GB)))
        codes.append(done.returncode)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            assert done.returncode == 75, (size, done)
            assert len(lines) == 1, (size, lines)
            assert not list(Path(f"out{size}").rglob("*.h5ad"))
    with capsys.disabled():
        print(f"\n{command} in 1 to 3 GB of address space: exit codes {codes}")


def test_64_open_files_are_enough_to_train(here):
    done, _ = run("train", *PLACES, "--out", "few", *SMALL, limit=files(64))
    assert (done.returncode, done.stderr) == (0, ""), done
