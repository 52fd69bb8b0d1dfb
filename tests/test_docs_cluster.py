"""The commands and job scripts of docs/cluster.md work as shown, with stand-ins for SLURM's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy import write_cohort

from stflow_graph.io.embeddings import open_embeddings, write_embeddings

TEXT = (Path(__file__).resolve().parents[1] / "docs/cluster.md").read_text(encoding="utf-8")
LITTLE = (
    "--encoder efficientnet_lite0 --epochs 1 --members 2 --folds 0 --n-neighbors 4 "
    "--hidden-channels 16 --set train.flow_steps=2"
)
PROGRAMS = {
    "stflow-graph": f'more=""; [ "$1" = train ] && more="{LITTLE}"\n'
    f'exec {sys.executable} -m stflow_graph_cli "$@" $more',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@" {LITTLE}',
    "srun": 'exec "$@"',
    "scontrol": "echo localhost",
}


def blocks(heading: str) -> str:
    """Return the first block of bash in a section, for one or two ranks."""
    found = re.search(rf"^## {heading}\n.*?```bash\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    text = found[1].replace("--nproc 4", "--nproc 2").replace("HOST:", "localhost:")
    return text.replace("--nproc-per-node 4", "--nproc-per-node 1")


@pytest.fixture
def run(tmp_path):
    """Run bash in a folder with the data that the page names; returns started processes."""
    cohort = write_cohort(tmp_path)
    (tmp_path / "ROOT").mkdir()
    cohort.root.rename(tmp_path / "ROOT/cohort")
    cohort.embeddings.rename(tmp_path / "EMB")
    (tmp_path / "EMB/cohort/toy").rename(tmp_path / "EMB/cohort/efficientnet_lite0")
    for file in (tmp_path / "EMB").rglob("*.h5"):
        with open_embeddings(file) as stored:
            x, attrs = stored.read(), {**stored.attrs, "encoder": "efficientnet_lite0"}
            barcodes, coords = stored.barcodes, stored.coords
        with write_embeddings(file, barcodes, coords, x.shape[1], attrs) as writer:
            writer.append(x)
    (tmp_path / "bin").mkdir()
    started: list[subprocess.Popen[str]] = []
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)

    def start(script: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
            | more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def succeed(*started: subprocess.Popen[str]) -> None:
    for process in started:
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, (out, errors)


def test_one_machine_and_an_array(run, tmp_path):
    succeed(run(blocks("One machine")))
    assert len(list((tmp_path / "OUT").glob("*.h5ad"))) == 4
    (tmp_path / "OUT").rename(tmp_path / "FIRST")
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}
    script = blocks("SLURM: slides as jobs of an array")
    succeed(*(run(script, SLURM_ARRAY_TASK_ID=f"{i}", **array) for i in (1, 2)))
    files = sorted((tmp_path / "FIRST").glob("*.h5ad"))
    assert all(file.read_bytes() == (tmp_path / "OUT" / file.name).read_bytes() for file in files)


def test_several_machines(run, tmp_path):
    script = blocks("Several machines")
    succeed(run(script), run(script))
    assert (tmp_path / "RUN/fold0/checkpoint/model.safetensors").exists()


def test_a_job_on_several_machines(run, tmp_path):
    job = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "localhost"}
    succeed(run(blocks("SLURM: one training on several machines"), **job))
    assert (tmp_path / "RUN/fold0/checkpoint/model.safetensors").exists()
