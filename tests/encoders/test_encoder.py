from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stflow_graph.encoders.encoder import Blueprint, hash_weights
from stflow_graph.errors import BadConfig, BadInput


@pytest.fixture
def plan() -> Blueprint:
    return Blueprint(lambda: torch.nn.BatchNorm1d(2), unused=("head.",))


@pytest.mark.parametrize("on_meta", [False, True])
def test_half_precision_files_make_float32_networks_without_unused_keys(tmp_path, on_meta):
    plan = Blueprint(lambda: torch.nn.Linear(2, 3), unused=("head.",), on_meta=on_meta)
    state = {"weight": torch.randn(3, 2).half(), "bias": torch.randn(3).half()}
    save_file({**state, "head.weight": torch.zeros(1)}, tmp_path / "half.safetensors")
    loaded = plan.load(tmp_path / "half.safetensors").state_dict()
    assert {key: value.dtype for key, value in loaded.items()} == dict.fromkeys(
        ("weight", "bias"), torch.float32
    )
    assert all(torch.equal(loaded[key], state[key].float()) for key in state)


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path, plan):
    state = {**plan.build().state_dict(), "weight": torch.zeros(3), "stranger": torch.zeros(1)}
    del state["bias"]
    save_file(state, tmp_path / "w.safetensors")
    message = (
        r"w.safetensors: weights do not fit the encoder: 1 missing \(such as bias\); 1 unexpected "
        r"\(such as stranger\); 1 misshapen \(such as weight \[3\] instead of \[2\]\)"
    )
    with pytest.raises(BadConfig, match=message):
        plan.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("on_meta", [False, True])
def test_counters_of_batch_norms_may_be_missing(tmp_path, on_meta):
    """Files without them come from exporters and from torch before 0.4.1."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)).eval()
    layers[1].running_mean.normal_()
    state = {k: v for k, v in layers.state_dict().items() if "num_batches_tracked" not in k}
    save_file(state, tmp_path / "w.safetensors")
    plan = Blueprint(
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)),
        on_meta=on_meta,
    )
    network = plan.load(tmp_path / "w.safetensors").eval()
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(network(images), layers(images))
    assert network[1].num_batches_tracked.item() == 0
    del state["1.running_mean"]  # other buffers matter
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BadConfig, match=r"1 missing \(such as 1.running_mean\)"):
        plan.load(tmp_path / "w.safetensors")


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


def test_pickled_code_is_never_run(tmp_path, plan):
    sentinel = tmp_path / "owned"
    torch.save({"weight": Malicious(sentinel)}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"w.pth: content: found pickled objects other than tensors"):
        plan.load(tmp_path / "w.pth")
    assert not sentinel.exists()


def test_files_that_hold_no_weights_are_refused(tmp_path, plan):
    (tmp_path / "w.safetensors").write_text("no")
    (tmp_path / "w.pth").write_text("no")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("w.safetensors", "w.pth", "list.pth", "absent.pth"):
        with pytest.raises(BadInput, match=name):
            plan.load(tmp_path / name)


def test_hashes_are_of_the_tensors_in_any_precision_and_layout():
    layer = torch.nn.Conv2d(2, 3, 3)
    state = sorted(layer.state_dict().items())
    expected = hashlib.sha256(b"".join(k.encode() + v.numpy().tobytes() for k, v in state))
    assert hash_weights(layer) == expected.hexdigest()
    assert hash_weights(layer.to(memory_format=torch.channels_last)) == expected.hexdigest()
    assert hash_weights(layer.bfloat16()) != expected.hexdigest()
    norm = torch.nn.BatchNorm1d(2)  # a counter without dimensions
    assert len(hash_weights(norm)) == 64
