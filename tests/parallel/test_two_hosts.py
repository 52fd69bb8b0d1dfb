"""Two nodes: network namespaces that see each other over a cable alone, one folder for both."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from stflow_graph.io.atomic import sha256

ADDRESSES = ("10.231.77.1", "10.231.77.2")


def ip(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], capture_output=True, check=False)


@pytest.fixture
def hosts():
    """Names of two network namespaces, joined by a pair of virtual interfaces."""
    if shutil.which("ip") is None:
        pytest.skip("no iproute2")
    names = [f"stflow{os.getpid()}{side}" for side in "ab"]
    if ip("netns", "add", names[0]).returncode:
        pytest.skip("no right to make network namespaces")
    try:
        ip("netns", "add", names[1])
        made = ip(
            *("link", "add", "va", "netns", names[0], "type", "veth"),
            *("peer", "name", "vb", "netns", names[1]),
        )
        if made.returncode:
            pytest.skip("no virtual interfaces")
        for name, device, address in zip(names, ("va", "vb"), ADDRESSES, strict=True):
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{address}/24", "dev", device)
            ip(*inside, "link", "set", device, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def start(
    host: str, address: str, device: str, *arguments: str, stderr: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--rdzv-id", "7", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--local-addr", address]
    # both namespaces have the machine's name, by which torchrun would find the one that hosts
    torchrun += ["--rdzv-conf", f"is_host={int(address == ADDRESSES[0])}"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *torchrun, "-m", "stflow_graph_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_cut_cable_ends_both_that_train_together(cohort, tmp_path, hosts):
    settings = {**cohort.settings, "train.folds": "all", "train.members": 1}
    settings |= {"train.batch_size": 4, "train.regions_per_slide": 4, "train.epochs": 100_000}
    settings["train.patience"] = 100_000
    words = ["train", "--set", *(f"{k}={json.dumps(v)}" for k, v in settings.items())]
    words += ["--out", str(tmp_path / "run")]
    logs = [tmp_path / f"{side}.log" for side in "ab"]
    with contextlib.ExitStack() as stack:
        for host, address, device, log in zip(hosts, ADDRESSES, ("va", "vb"), logs, strict=True):
            errors = stack.enter_context(log.open("w"))
            node = start(host, address, device, *words, stderr=errors)
            stack.enter_context(node)
            stack.callback(node.kill)  # torchrun's own agent waits for the other one for long
        state = tmp_path / "run/all/state-0.safetensors"
        wait_for(state.exists, 60)
        ip("-n", hosts[0], "link", "set", "va", "down")
        wait_for(lambda: "error: rank 1 on" in logs[0].read_text(), 70)
        wait_for(lambda: "error: the store of the ranks is silent" in logs[1].read_text(), 70)


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "too late"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("members", [2, 1])  # shared out, and trained by both together
def test_two_nodes_train_one_run(cohort, tmp_path, hosts, members):
    settings = {**cohort.settings, "train.folds": "all", "train.members": members}
    settings |= {"train.batch_size": 4, "train.regions_per_slide": 4}
    words = ["train", "--set", *(f"{k}={json.dumps(v)}" for k, v in settings.items())]
    words += ["--out", str(tmp_path / "run")]
    nodes = [
        start(host, address, device, *words)
        for host, address, device in zip(hosts, ADDRESSES, ("va", "vb"), strict=True)
    ]
    outputs = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum(out.count("next: ") for out, _ in outputs) == 1
    checkpoint = tmp_path / "run/all/checkpoint"
    assert (checkpoint / "model.safetensors").exists()
    if members == 2:
        alone = subprocess.run(
            [sys.executable, "-m", "stflow_graph_cli", *words[:-1], str(tmp_path / "alone")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert alone.returncode == 0
        other = tmp_path / "alone/all/checkpoint"
        assert sha256(checkpoint / "model.safetensors") == sha256(other / "model.safetensors")
