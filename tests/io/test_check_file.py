"""Readers accept regular files and links to them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stflow_graph.errors import BadInput
from stflow_graph.io.atomic import check_file


def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("fifo")
    Path("link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        cases = {"fifo": "a FIFO", "link": "a FIFO", "socket": "a socket", ".": "a folder"}
        cases |= {"/dev/zero": "a device", "a\0b": "a name that no file", "x" * 300: "File name"}
        for path, kind in cases.items():
            with pytest.raises(BadInput, match=f"file: found .?{kind}"):
                check_file(path)


def test_a_link_to_a_file_is_one(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert check_file(tmp_path / "link") == tmp_path / "link"
