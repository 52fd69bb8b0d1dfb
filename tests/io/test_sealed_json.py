"""JSON with a checksum: read as written, refused when changed, read from before checksums."""

from __future__ import annotations

import json

import pytest

from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import write_json
from stflow_graph.io.sealed_json import CONTENT_SEAL, read_sealed, write_sealed

CONTENT = {"scores": [0.5, None, 1e-300], "ä": {"b": True}}
OLD = ("ours/1", None)


def test_sealed_json_is_read_as_it_was_written(tmp_path):
    write_sealed(tmp_path / "a.json", "ours/2", CONTENT)
    assert read_sealed(tmp_path / "a.json", OLD, "x") == {"format": "ours/2", **CONTENT}


@pytest.mark.parametrize("format", [{"format": "ours/1"}, {}])
def test_json_of_before_checksums_is_read(tmp_path, format):
    write_json(tmp_path / "a.json", {**format, **CONTENT})
    assert read_sealed(tmp_path / "a.json", OLD, "x") == {**format, **CONTENT}


@pytest.mark.parametrize("format", ["ours/2", "ours/99", 1, [], {"a": 1}])
def test_newer_json_without_its_checksum_is_refused(tmp_path, format):
    write_json(tmp_path / "a.json", {"format": format, **CONTENT})
    with pytest.raises(BadInput, match=r"content_sha256: found another content.*Fix: remove it"):
        read_sealed(tmp_path / "a.json", OLD, "remove it")


def test_every_changed_byte_is_noticed(tmp_path):
    file = tmp_path / "a.json"
    write_sealed(file, "ours/2", CONTENT)
    text = file.read_bytes()
    for at in range(len(text)):
        changed = bytearray(text)
        changed[at] ^= 1 << at % 7
        file.write_bytes(changed)
        try:
            content = read_sealed(file, OLD, "x")
        except BadInput:
            continue
        assert content == {"format": "ours/2", **CONTENT}, at  # white space


def test_a_changed_entry_is_noticed_though_the_checksum_stays(tmp_path):
    file = tmp_path / "a.json"
    write_sealed(file, "ours/2", CONTENT)
    content = json.loads(file.read_text())
    assert CONTENT_SEAL in content
    for changed in ({**content, "scores": [0.6]}, {**content, "format": "ours/1"}):
        file.write_text(json.dumps(changed))
        with pytest.raises(BadInput, match="content_sha256"):
            read_sealed(file, OLD, "x")
