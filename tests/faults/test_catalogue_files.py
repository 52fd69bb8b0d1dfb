"""Rows 1 to 29 of the catalogue of faults: files, their schema and their values.

Each row spoils an input and runs the commands that read it: embed, train, sample, eval. Unless a
row is harmless, they end with one line and its exit code, and leave nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from artefacts import edit_h5, resealed

from stflow_graph.errors import BadInput
from stflow_graph.io.embeddings import open_embeddings

PATCHES, EMBEDDING = "patches/p0.h5", "embeddings/cohort/toy/fp32/{}.h5"
COUNTS, PREDICTION = "cohort/adata/{}.h5ad", "predictions/A.h5ad"
PLACES = ["--source-dataroot", "cohort", "--embed-dataroot", "embeddings", "--encoder", "toy"]
# slide B is learned from in fold 0, which tests A
COMMANDS = {
    "E": ["embed", PATCHES, "--encoder", "toy:toy_encoder", "--device", "cpu", "--out", "out"],
    "T": ["train", *PLACES, *"--folds 0 --members 1 --epochs 1 --out out --set".split()]
    + ["denoiser.hidden_channels=8", "train.flow_steps=2", "train.regions_per_slide=1"],
    "S": ["sample", "run", EMBEDDING.format("A"), "--out", "out", "--n-samples", "1"],
    "V": ["eval", PREDICTION, "--truth", "cohort", "--n-bootstrap", "2", "--out", "out"],
}
Spoil = Callable[[Path], object]
CASES: list = []


def row(number: int, what: str, command: str, file: str, spoil: Spoil, code: int, text: str):
    """Add a case: what a command says of a file that was spoiled."""
    name = f"{number:02} {what}, {command}"
    CASES.append(pytest.param(command, file.format(*"AB"), spoil, code, text, id=name))


def in_each(number: int, what: str, spoil: Spoil, text: str, code: int = 3, of: str = "ETSV"):
    """Add a case for a file that each of these commands reads."""
    files = {"E": PATCHES, "T": EMBEDDING.format("B"), "S": EMBEDDING.format("A"), "V": PREDICTION}
    for command in of:
        row(number, what, command, files[command], spoil, code, text)


def edited(key: str, change) -> Spoil:
    return lambda path: edit_h5(path, key, change)


def attribute(key: str, value, of: str = "/") -> Spoil:
    def spoil(path: Path) -> None:
        with resealed(path) as file:
            file[of].attrs[key] = value

    return spoil


def replaced_by(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def left_open(path: Path) -> None:
    """Make it what a killed writer leaves: marked as open for writing."""
    text = f"import h5py, os; f = h5py.File({str(path)!r}, 'w', libver='latest')"
    text += "; f['x'] = [1] * 99; f.flush(); os._exit(9)"
    subprocess.run([sys.executable, "-c", text], check=False)


def unmarked(path: Path) -> None:
    with resealed(path) as file:
        del file.attrs["complete"]
        for dataset in ("embeddings", "img", "X"):
            if dataset in file:
                file[dataset][...] = 0


for what, spoil in {"missing": Path.unlink, "a dangling link": made_dangling}.items():
    in_each(1, what, spoil, "No such file|no such|no file")
in_each(1, "a folder", made_a_folder, "folder|no |director")
for what, content in {
    "empty": b"",
    "text": b"barcode,x\n" * 99,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(999),
    "a web page": b"<!doctype html><html>" * 9,
}.items():
    in_each(2, what, replaced_by(content), "HDF5|empty|0 bytes")
in_each(3, "cut", lambda p: os.truncate(p, p.stat().st_size * 2 // 3), "truncated")
in_each(4, "left open by a killed writer", left_open, "written|open|embeddings|img|found")
in_each(5, "without the mark of completion", unmarked, "complete", of="ETS")
in_each(10, "without coordinates", edited("coords", None), "coords", of="ETS")
row(10, "without barcodes", "S", EMBEDDING, edited("barcodes", None), 3, "barcodes")
in_each(11, "a coordinate too few", edited("coords", lambda c: c[1:]), r"\d+.*\d+", of="ETS")
for what, change in {
    "texts": lambda x: np.full(x.shape, b"1"),
    "complex numbers": lambda x: x.astype(complex),
}.items():
    row(12, what, "S", EMBEDDING, edited("embeddings", change), 3, "embeddings")
    row(12, what, "E", PATCHES, edited("img", change), 3, "img")
for what, change in {
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "four channels": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "no dimension": lambda x: x[:, 0],
    "none": lambda x: x[:0],
}.items():
    row(13, what, "E", PATCHES, edited("img", change), 3, "img|coords|patches|0")
wide = edited("embeddings", lambda x: np.concatenate([x, x], axis=1))
row(14, "another width", "S", EMBEDDING, wide, 4, "20.*10|10.*20")
row(14, "another encoder", "S", EMBEDDING, attribute("encoder", "uni"), 4, "uni.*toy|toy.*uni")
for command, slide in (("T", "B"), ("V", "A")):
    counts = COUNTS.format(slide)
    for what, change in {
        "three columns": lambda x: np.c_[x, x[:, 0]],
        "transposed": lambda x: x.T.copy(),
    }.items():
        row(15, what, command, counts, edited("obsm/spatial", change), 3, "spatial")
    for key, value in {"indices": 99, "indptr": 999, "data": np.nan}.items():

        def one_bad(x, value=value):
            x[len(x) // 2] = value
            return x

        row(16, f"CSR {key}", command, counts, edited(f"X/{key}", one_bad), 3, "X|counts|sparse")
    future = attribute("encoding-type", "csr_matrix_of_2031", of="X")
    row(17, "of the future", command, counts, future, 3, "csr_matrix_of_2031")
    twice = edited("var/_index", lambda x: np.array([*x[:-1], x[0]], dtype=object))
    row(19, "a gene twice", command, counts, twice, 3, "G0|genes|twice|unique|distinct")
    twice = edited("obs/_index", lambda x: np.array([*x[:-1], x[0]], dtype=object))
    row(19, "a barcode twice", command, counts, twice, 3, "0x0|barcode|twice|unique|distinct")
    other = edited("obs/_index", lambda x: np.array([b"z" + b for b in x], dtype=object))
    row(20, "no barcode matches", command, counts, other, 3, "barcode|matched")
    for what, change in {
        "negative counts": lambda x: -x,
        "logarithms": np.log1p,
        "infinite counts": lambda x: np.where(x == x.max(), np.inf, x),
    }.items():
        row(27, what, command, counts, edited("X/data", change), 3, "X|counts")
lost = edited("var/_index", lambda x: np.array([b"Z" + g for g in x], dtype=object))
row(18, "all genes absent", "T", COUNTS.format("B"), lost, 3, "G0|genes")
nowhere = edited("coords", lambda c: np.where(np.arange(len(c))[:, None] == 2, np.nan, c))
in_each(21, "positions that are no numbers", nowhere, "coords.*(1 |2)", of="ETS")
unknown = edited("embeddings", lambda x: np.where(np.arange(len(x))[:, None] == 2, np.nan, x))
row(26, "embeddings that are no numbers", "S", EMBEDDING, unknown, 3, "embeddings.*1 ")
row(26, "embeddings that are no numbers", "T", EMBEDDING.format("B"), unknown, 3, "embeddings")
row(29, "16-bit images", "E", PATCHES, edited("img", lambda x: x.astype("u2")), 3, "uint16")


@pytest.mark.parametrize(("command", "file", "spoil", "code", "text"), CASES)
def test_refused_in_one_line(cli, here, command, file, spoil, code, text):
    spoil(here / file)
    run = cli(*COMMANDS[command])
    assert run.code == code, run
    assert run.error.startswith("error: "), run
    assert Path(file).name in run.error or file in run.error, run
    assert re.search(text, run.error.split(":", 2)[-1]), run
    assert not list(here.glob("out/**/*.h5*"))


def spread(values: np.ndarray, rows: slice, to: object) -> np.ndarray:
    values = values.astype(float)
    values[rows] = to
    return values


HARMLESS = {
    "12 big-endian": ("embeddings", lambda x: x.astype(">f4")),
    "12 half precision": ("embeddings", lambda x: x.astype("f2")),
    "22 another scale": ("coords", lambda c: c * 0.08),
    "22 negative": ("coords", lambda c: c - 1e6),
    "23 all at one place": ("coords", np.zeros_like),
    "23 two at one place": ("coords", lambda c: spread(c, slice(0, 2), c[0])),
    "25 in a line": ("coords", lambda c: np.c_[np.arange(len(c)) * 100, np.zeros(len(c))]),
    "26 all zero": ("embeddings", lambda x: spread(x, slice(3, 4), 0).astype("f4")),
    "26 constant": ("embeddings", np.ones_like),
    "32 large": ("embeddings", lambda x: x * np.float32(1e4)),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_sampled_with_every_spot_in_its_place(cli, here, what):
    key, change = HARMLESS[what]
    edit_h5(here / EMBEDDING.format("A"), key, change)
    run = cli(*COMMANDS["S"])
    assert run.code == 0, run
    with open_embeddings(here / EMBEDDING.format("A")) as file:
        barcodes = file.barcodes
    prediction = anndata.read_h5ad(here / "out" / "A.h5ad")
    assert prediction.obs_names.tolist() == barcodes
    for values in (prediction.X, *prediction.layers.values()):
        assert np.isfinite(values).all()
        assert values.min() >= 0  # row 33: no negative expression


def test_06_rot_of_any_bit_is_noticed(here):
    """No bit of an embedding file changes what is read without a word."""
    path = here / EMBEDDING.format("A")
    content, seen = path.read_bytes(), {"refused": 0, "same": 0}
    with open_embeddings(path) as file:
        expected = (file.read().tobytes(), file.coords.tobytes(), file.barcodes, file.attrs)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(content), 200):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            with open_embeddings(path) as file:
                found = (file.read().tobytes(), file.coords.tobytes(), file.barcodes, file.attrs)
        except BadInput:
            seen["refused"] += 1
            continue
        assert found == expected, place
        seen["same"] += 1
    assert seen["refused"] > 50


@pytest.mark.parametrize(("n", "code"), [(0, 3), (1, 3), (4, 3), (5, 0)])
def test_24_few_spots(cli, here, n, code):
    for key in ("embeddings", "coords", "barcodes"):
        edit_h5(here / EMBEDDING.format("A"), key, lambda x: x[:n])
    run = cli(*COMMANDS["S"])
    assert run.code == code, run
    if code == 0:
        assert anndata.read_h5ad(here / "out" / "A.h5ad").n_obs == n
    else:
        assert "spots" in run.error


def test_19_a_barcode_of_two_slides_is_legal_and_28_spots_without_counts_are_kept(cli, here):
    """The slides of this cohort have the same barcodes."""
    for slide in "ABCD":
        counts = COUNTS.format(slide)
        edit_h5(here / counts, "X/data", lambda x: spread(x, slice(0, 4), 0).astype("f4"))
    assert cli(*COMMANDS["T"]).code == 0
    run = cli(*COMMANDS["V"])
    assert (run.code, "nan" in run.out.lower()) == (0, False), run


def test_15_counts_need_no_positions_of_their_own(cli, here):
    """They are the embeddings'."""
    for slide in "AB":
        edit_h5(here / COUNTS.format(slide), "obsm/spatial", None)
    assert [cli(*COMMANDS[command]).code for command in ("T", "V")] == [0, 0]


def test_29_black_and_white_patches_are_embedded(cli, here):
    colours = np.arange(7, dtype=np.uint8)[:, None, None, None] % 2 * 255
    edit_h5(here / PATCHES, "img", lambda x: colours + 0 * x)
    assert cli(*COMMANDS["E"]).code == 0
    with open_embeddings(here / "out" / "p0.h5") as file:
        assert np.isfinite(file.read()).all()
