"""``doctor``: what works, what is absent, what fails; nothing is left behind."""

from __future__ import annotations

import builtins
import errno
import importlib
import json
import os
import shutil
import types

import pytest
from toy import write_images

from stflow_graph.stages import doctor


def checks_of(cli, *arguments, code=0):
    run = cli("doctor", "--json", *arguments)
    assert run.code == code, run.err
    found = json.loads(run.out)
    assert found["ok"] is (code == 0)
    return {check["subject"]: check for check in found["results"]}


def test_a_working_machine_and_folder(cli, tmp_path):
    checks = checks_of(cli, tmp_path)
    assert {check["state"] for check in checks.values()} <= {"ok", "absent"}
    assert checks["torch"]["found"].count(".") >= 2
    writing = checks[f"writing in {tmp_path}"]
    assert writing["found"] == "write, fsync, rename, fsync of the folder"
    assert "efficientnet_lite0 (package)" in checks["encoder weights"]["found"]
    assert "free" in checks["disk"]["found"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(cli, tmp_path, columns):
    run = cli("doctor", tmp_path, columns=columns)
    assert (run.code, run.err) == (0, "")
    assert max(map(len, run.out.splitlines())) <= columns
    assert "stflow_graph" in run.out


@pytest.mark.parametrize(
    ("step", "name"),
    [("fsync", "fsync"), ("replace", "rename")],
)
def test_a_folder_that_cannot_be_written_to(cli, tmp_path, monkeypatch, step, name):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, step, fail)
    check = checks_of(cli, tmp_path, code=74)[f"writing in {tmp_path}"]
    assert check["found"] == f"{name}: {os.strerror(errno.EIO)}"
    assert check["fix"]
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_one_line(cli, tmp_path):
    run = cli("doctor", tmp_path / "absent")
    assert run.code == 3
    assert "absent: folder: found no folder" in run.error


@pytest.mark.parametrize(("free", "code"), [(10**9, 0), (100, 74)])
def test_the_disk_must_hold_the_embeddings(cli, tmp_path, monkeypatch, free, code):
    (tmp_path / "D/splits").mkdir(parents=True)
    write_images(tmp_path / "D/patches/A.h5", 5)
    write_images(tmp_path / "D/patches/B.h5", 3)
    usage = types.SimpleNamespace(total=10**9, used=0, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = checks_of(cli, tmp_path, "--source-dataroot", tmp_path / "D", code=code)["disk"]
    assert "41 kB needed for the embeddings" in check["found"]  # 8 patches, 1280 numbers


def test_a_package_that_cannot_be_imported_fails(cli, tmp_path, monkeypatch):
    real = importlib.import_module

    def load(name, *rest):
        if name == "zarr":
            raise ImportError("libfoo.so: undefined symbol\nand more")
        return real(name, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    check = checks_of(cli, tmp_path, code=4)["zarr"]
    assert (check["state"], check["found"]) == ("failed", "libfoo.so: undefined symbol")


def test_extras_that_are_not_installed_are_absent_not_failed(cli, tmp_path, monkeypatch):
    lines = [
        "torch>=2",
        'there>=1 ; extra == "one"',
        "gone>=1; extra == 'two'",
        'x; extra == "dev"',
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", lambda name: "1.2" if name == "there" else None)
    checks = checks_of(cli, tmp_path)
    assert checks["extra one"]["found"] == "there 1.2"
    assert checks["extra two"]["state"] == "absent"
    assert "stflow-graph[two]" in checks["extra two"]["fix"]
    assert "extra dev" not in checks


def test_a_system_without_meminfo(monkeypatch):
    monkeypatch.setattr(doctor.Path, "read_text", lambda *a, **k: builtins.open("/nowhere"))
    assert doctor.available_memory() is None


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (41e3, "41 kB"), (3.3e13, "33 TB")]
)
def test_sizes(n, text):
    assert doctor._size(n) == text
