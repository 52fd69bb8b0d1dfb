"""The state of an interrupted run is read as it was written, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stflow_graph.errors import BadInput
from stflow_graph.training.state_file import read_state, write_state

TENSORS = {
    "network/weight": torch.arange(6.0).reshape(2, 3),
    "optimizer/0/step": torch.tensor(3.0),
    "average/n_averaged": torch.tensor(7),
    "network/half": torch.ones(2, dtype=torch.bfloat16),
    "network/none": torch.empty(0, 2),
}
HISTORY = [{"epoch": 1, "loss": 1 / 3}]


def test_a_state_is_read_as_it_was_written(tmp_path):
    shared = {**TENSORS, "network/view": TENSORS["network/weight"].T}
    write_state(tmp_path / "state", shared, HISTORY)
    tensors, history = read_state(tmp_path / "state")
    assert history == HISTORY
    assert tensors.keys() == shared.keys()
    for key, value in shared.items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


def test_a_state_of_before_checksums_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "state", {"history": json.dumps(HISTORY)})
    tensors, history = read_state(tmp_path / "state")
    assert history == HISTORY
    assert torch.equal(tensors["network/weight"], TENSORS["network/weight"])


def test_every_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "state"
    write_state(file, TENSORS, HISTORY)
    content = file.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        try:
            tensors, history = read_state(file)
        except BadInput as error:
            assert "remove it to train this fold anew" in str(error)  # noqa: PT017
        except (SafetensorError, KeyError, ValueError, TypeError):
            pass
        else:  # a space of the header, or the name of an entry that is not needed
            assert history == HISTORY, at
            assert all(torch.equal(tensors[key], value) for key, value in TENSORS.items()), at


def test_a_state_without_its_checksum_is_refused(tmp_path):
    metadata = {"format": "stflow_graph.state/2", "history": "[]"}
    save_file(TENSORS, tmp_path / "state", metadata)
    with pytest.raises(BadInput, match="sha256: found another content.*Fix: remove it"):
        read_state(tmp_path / "state")
