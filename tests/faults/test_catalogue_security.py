"""Rows 45 to 52 of the catalogue of faults: what a stranger's file may not do."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from artefacts import edit_h5, make_foreign
from command_line import refused
from safetensors.torch import load_file, save_file

EMBEDDING = "embeddings/cohort/toy/fp32/A.h5"
SAMPLE = ["sample", "run", EMBEDDING, "--out", "out"]
TRAIN = ["train", "--source-dataroot", "cohort", "--embed-dataroot", "embeddings"]
TRAIN += [*"--encoder toy --folds 0 --members 1 --epochs 1 --out out".split()]
pytestmark = pytest.mark.usefixtures("here")


class Evil:
    """What an attacker pickles."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
def test_45_nothing_is_unpickled(cli, here, form):
    if form == "pickle":
        (here / "model.pt").write_bytes(pickle.dumps(Evil()))
    else:
        new = form == "torch"
        torch.save({"x": Evil()}, here / "model.pt", _use_new_zipfile_serialization=new)
    refused(cli("convert", "model.pt", "out"), 3, "model.pt")
    assert not (here / "executed").exists()


LINKS = {
    "external link": lambda f, key: f.__setitem__(key, h5py.ExternalLink("other.h5", "x")),
    "loop": lambda f, key: f.__setitem__(key, h5py.SoftLink(f"/{key}")),
    "dangling": lambda f, key: f.__setitem__(key, h5py.SoftLink("/nowhere")),
    "external storage": lambda f, key: f.create_dataset(
        key, (36, 10), "f4", external=[("secret.bin", 0, 1440)]
    ),
}


@pytest.mark.parametrize("kind", [*LINKS, "virtual"])
def test_46_no_file_leads_to_another(cli, here, kind):
    (here / "secret.bin").write_bytes(bytes(1440))
    with h5py.File(here / "other.h5", "w") as file:
        file["x"] = np.zeros((36, 10), "f4")
    make_foreign(here / EMBEDDING)
    with h5py.File(here / EMBEDDING, "r+") as file:
        del file["embeddings"]
        if kind == "virtual":
            layout = h5py.VirtualLayout((36, 10), "f4")
            layout[:] = h5py.VirtualSource("other.h5", "x", (36, 10))
            file.create_virtual_dataset("embeddings", layout)
        else:
            LINKS[kind](file, "embeddings")
    refused(cli(*SAMPLE), 3, EMBEDDING, "embeddings")


def test_47_a_small_file_of_terabytes_is_refused(cli, here):
    make_foreign(here / EMBEDDING)
    with h5py.File(here / EMBEDDING, "r+") as file:
        del file["embeddings"]
        file.create_dataset("embeddings", (2**38, 10), "f4", chunks=(1000, 10))
    refused(cli(*SAMPLE), 3, EMBEDDING)


NAMES = ["../../x", "/etc/x", "a\0b", "x" * 300, ".", "..", "a/b"]


@pytest.mark.parametrize("name", NAMES)
def test_48_no_name_leaves_the_folder(cli, here, name):
    for side in ("train", "test"):
        file = here / f"cohort/splits/{side}_0.csv"
        file.write_text(
            file.read_text().replace("\nA,", f"\n{name},").replace("\nB,", f"\n{name},")
        )
    run = cli(*TRAIN)
    refused(run, 3)
    assert not (here / "out" / "fold0").exists()


def test_48_no_entry_of_a_split_leaves_the_data_set(cli, here):
    file = here / "cohort/splits/train_0.csv"
    file.write_text(file.read_text().replace("adata/B.h5ad", "../predictions/A.h5ad"))
    refused(cli(*TRAIN), 3, "train_0.csv")


def test_49_a_link_at_the_outputs_place_is_not_followed(cli, here):
    (here / "out").mkdir()
    victim = here / "victim"
    victim.write_text("precious")
    (here / "out/A.h5ad").symlink_to(victim)
    cli(*SAMPLE, "--overwrite")
    assert victim.read_text() == "precious"


def test_50_no_text_of_a_file_reaches_the_terminal_or_a_spreadsheet(cli, here):
    evil = "\x1b[2J=cmd|'/c calc'!A0[/b]"
    names = np.array([evil] * 36, dtype=object)
    edit_h5(here / EMBEDDING, "barcodes", lambda x: np.array([n.encode() for n in names]))
    run = cli(*SAMPLE)
    refused(run, 3)
    assert "\x1b" not in run.err
    cli("export", "predictions/A.h5ad", "--to", "a.csv")
    assert not any(
        line.startswith(tuple("=+-@")) for line in Path("a.csv").read_text().splitlines()
    )


def test_51_an_unknown_filter_is_named(cli, here):
    make_foreign(here / EMBEDDING)
    with h5py.File(here / EMBEDDING, "r+") as file:
        values = file["embeddings"][()]
        del file["embeddings"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((36, 10))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((36, 10))
        kind = h5py.h5t.IEEE_F32LE
        made = h5py.h5d.create(file.id, b"embeddings", kind, space, properties)
        made.write_direct_chunk((0, 0), values.tobytes(), filter_mask=0)
    refused(cli(*SAMPLE), 3, EMBEDDING)


def header_of_2_to_63(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**63) + bytes(99))


def a_key_twice(path: Path) -> None:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    name, entry = next((k, v) for k, v in head.items() if k != "__metadata__")
    text = json.dumps(head)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + content[8 + size :])


def changed(change) -> object:
    def spoil(path: Path) -> None:
        tensors = load_file(path)
        change(tensors, next(iter(tensors)))
        save_file(tensors, path)

    return spoil


WEIGHTS = {
    "header of 2^63 bytes": header_of_2_to_63,
    "a key twice": a_key_twice,
    "another type": changed(lambda t, k: t.update({k: t[k].double()})),
    "one more": changed(lambda t, k: t.update(more=torch.zeros(1))),
    "one less": changed(lambda t, k: t.pop(k)),
    "NaN": changed(lambda t, k: t.update({k: t[k] * torch.nan})),
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_52_weights_that_were_changed_are_refused(cli, here, how):
    """A checksum tells; in a checkpoint of before there were any, their form and values."""
    folder = here / "run/fold0/checkpoint"
    WEIGHTS[how](folder / "model.safetensors")
    run = cli(*SAMPLE)
    assert run.code == 4, run
    assert "model.safetensors" in run.error
