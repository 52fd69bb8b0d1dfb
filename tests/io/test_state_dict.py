"""State dicts from files: what torch would make room for is looked at first."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from stflow_graph.errors import BadInput
from stflow_graph.io.state_dict import read_state_dict, read_tensor

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
CENTRAL, UNCOMPRESSED = b"PK\x01\x02", 24  # a part's entry, and where its size is there


@pytest.fixture
def path(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def claim(path: Path, size: int) -> None:
    """Let the last part of an archive claim a size."""
    content = bytearray(path.read_bytes())
    at = content.rfind(CENTRAL) + UNCOMPRESSED
    content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)


@pytest.mark.parametrize("read", [read_state_dict, read_tensor])
def test_a_part_larger_than_its_file_is_not_made_room_for(path, read):
    claim(path, 2**32 - 2)
    with pytest.raises(
        BadInput, match=r"parts of 4,29\d,\d+,\d+ bytes in a file of \d,\d+, expected"
    ):
        read(path)


def test_compressed_archives_are_read(path, tmp_path):
    other = tmp_path / "c.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part), zipfile.ZIP_DEFLATED)
    torch.testing.assert_close(read_state_dict(other), STATE)


@pytest.mark.parametrize("size", [2, 2**40])
def test_one_number_is_not_a_matrix(path, size):
    torch.save({"a": torch.ones(1).expand(size, 1)}, path)
    with pytest.raises(
        BadInput, match=rf"a: found \[{size}, 1\] numbers in 4 bytes, expected a dense"
    ):
        read_state_dict(path)


def test_views_of_larger_weights_are_read(path):
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole.T, "b": whole[1:, ::2]}, path)
    found = read_state_dict(path)
    assert torch.equal(found["a"], whole.T)
    assert torch.equal(found["b"], whole[1:, ::2])
