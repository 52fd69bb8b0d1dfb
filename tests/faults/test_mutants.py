"""Readers of damaged and hostile files: one line, or the same result; each past failure by name."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import platform_files
import pytest
import scipy.sparse as sp
import torch
from artefacts import edit_h5, make_foreign, resealed
from faults.formats import FORMATS
from faults.mutants import VALUES
from faults.trials import originals_of, run_format
from toy import write_slide

from stflow_graph.data.genes import read_gene_list
from stflow_graph.errors import StflowError, as_bad_input
from stflow_graph.images.open import open_image
from stflow_graph.io.columns import read_columns
from stflow_graph.io.expression import read_expression
from stflow_graph.io.hdf5 import open_h5
from stflow_graph.io.hdf5_trial import comes_back
from stflow_graph.platforms.array_scale import positive
from stflow_graph.platforms.tenx import read_tenx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of Linux")
# of the formats whose reading takes a tenth of a second
SLOW = (
    "expression",
    "predictions",
    "foreign .h5ad",
    "unmarked predictions",
    "HEST-1k",
    "Visium HD",
)
SLOW += ("predictions on a page", "predictions, exported", "unmarked predictions, exported")
SLOW += ("Visium", "Visium, 10x v2", "kit", "TRIDENT", "CLAM", "checkpoint, resealed", "Xenium")


@pytest.mark.parametrize("name", FORMATS)
def test_mutants_are_refused_in_one_line_or_read_as_before(name):
    tally = run_format(FORMATS[name], 30 if name in SLOW else 100)
    assert not tally.failures, "\n".join(map(str, tally.failures))
    assert tally.counts["refused"] > 0


@contextlib.contextmanager
def limits(seconds: int = 10, memory: int = 2**30) -> Iterator[None]:
    """Fail what takes too long or too much memory beyond what the process has."""

    def late(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_refused(read: Callable[[], object], *exit_codes: int, may_pass: bool = False) -> str:
    """Check that reading raises one line with an exit code of 3, or another given; return it."""
    refusal: StflowError | None = None
    with limits():
        try:
            read()
        except StflowError as error:
            refusal = error
    if refusal is None:
        assert may_pass, "nothing was refused"
        return ""
    assert refusal.exit_code in (exit_codes or (3,)), refusal
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 2500
    return str(refusal)


def files_of(name: str, folder: Path) -> Path:
    with originals_of(FORMATS[name]) as (originals, _):
        shutil.copytree(originals, folder / "files")
    return folder / "files"


ATTRIBUTES = ["text", "", b"\xff", np.zeros(0), np.arange(3), np.array(["a"], object), -1, 0, 1e300]
ATTRIBUTES += [h5py.Empty("f"), h5py.Empty("S3"), np.nan, True, 1 + 2j]


@pytest.mark.parametrize(
    ("name", "item", "keys"),
    [
        ("embeddings", "/", ("format", "complete", "um_per_px", "convention", "encoder")),
        ("HEST embeddings", "/", ("um_per_px", "encoder")),
        ("patches", "/", ("format", "complete")),
        ("patches", "img", ("pixel_size", "patch_size_src")),
        ("patches", "coords", ("convention",)),
        ("TRIDENT", "coords", ("patch_size_level0", "level0_magnification", "overlap")),
        ("TRIDENT", "features", ("encoder",)),
        ("foreign .h5ad", "/", ("encoding-type", "encoding-version")),
        ("foreign .h5ad", "obs", ("_index", "column-order", "encoding-type")),
        ("foreign .h5ad", "X", ("shape", "encoding-type")),
    ],
)
def test_attributes_of_any_type(tmp_path, name, item, keys):
    folder = files_of(name, tmp_path)
    path = next(path for path in folder.rglob("*.h5*"))
    content = path.read_bytes()
    for key in keys:
        for value in ATTRIBUTES:
            for sealed in (False, True):
                path.write_bytes(content)
                with resealed(path) if sealed else h5py.File(path, "r+") as file:
                    file[item].attrs[key] = value
                check_refused(lambda: FORMATS[name].read(folder), may_pass=True)


@pytest.mark.parametrize("value", [None, *VALUES[:6], "text", np.zeros(0)])
def test_uns_of_any_value(tmp_path, value):
    adata = anndata.AnnData(sp.csr_matrix(np.eye(3, dtype=np.float32)))
    for key in ("um_per_px", "pixel_size_um_estimated", "stflow_graph", "spatial", "x"):
        adata.uns[key] = value
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert len(read_expression(tmp_path / "a.h5ad").barcodes) == 3


ENTRIES = ("slide", "target", "dataset", "encoder", "protocol", "checkpoint_sha256", "fold")
ENTRIES += ("train_slides", "genes", "warnings", "um_per_px", "in_range", "n_samples", "seed")
ENTRIES += ("denoiser", "grid", "patch_um", "um_per_px_given", "device", "version", "torch")


ODD = [-1, 0.5, 1e200, 10**400, np.nan, "x", "", None, True, [], [1, "a"], {}]
ODD += [{"pitch_um": 10**400}]


@pytest.mark.parametrize("name", [*ENTRIES, "share", "embeddings", "stain"])
def test_entries_of_a_prediction_of_any_value(tmp_path, name):
    folder = files_of("predictions on a page", tmp_path)
    content = (folder / "S.h5ad").read_bytes()
    for value in ODD:
        (folder / "S.h5ad").write_bytes(content)
        with h5py.File(folder / "S.h5ad", "r+") as file:
            data = file["uns/stflow_graph/provenance"]
            stored = json.loads(data.asstr()[()])
            place = stored if name in ENTRIES else stored["in_range"]
            place[name] = value
            data[()] = json.dumps(stored)
        check_refused(lambda: FORMATS["predictions on a page"].read(folder), may_pass=True)


ARRAYS = [b"text", np.nan, np.inf, -1, 0, 1j, True, 1, np.float16(1), np.int64(1)]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("varm/training_quantiles", "predictions on a page"),
        ("uns/stflow_graph/quantile_levels", "predictions on a page"),
        ("var/expected_pearson", "predictions on a page"),
        ("obs/observed", "unmarked predictions, in blocks"),
        ("uns/spatial/S/scalefactors/spot_diameter_fullres", "unmarked predictions, exported"),
        ("uns/spatial/S/scalefactors/tissue_hires_scalef", "unmarked predictions, exported"),
        ("uns/spatial/S/images/hires", "unmarked predictions, exported"),
    ],
)
def test_arrays_of_a_prediction_of_any_type(tmp_path, name, read):
    folder = files_of("predictions on a page", tmp_path)
    with h5py.File(folder / "S.h5ad") as file:
        shape = file[name].shape
    for value in ARRAYS:
        for other in (np.full(shape, value), np.full((2, 2), value), np.zeros((0, 3)), None):
            edit_h5(folder / "S.h5ad", name, other)
            text = check_refused(lambda: FORMATS[read].read(folder), may_pass=True)
            if "scalefactors" in name and value in (b"text", 1j, -1, 0, np.inf):
                assert "scalefactors" in text, value


def damaged_everywhere(path: Path, size: int, damage: Callable[[bytes], bytes]) -> Iterator[int]:
    """Damage each part of a file in turn, and yield where."""
    content = path.read_bytes()
    for start in range(0, len(content), size):
        part = content[start : start + size]
        path.write_bytes(content[:start] + damage(part) + content[start + size :])
        yield start
    path.write_bytes(content)


def test_any_zeroed_page_of_an_h5ad_ends(tmp_path):
    path = files_of("foreign .h5ad", tmp_path) / "S.h5ad"
    for _ in damaged_everywhere(path, 4096, lambda part: bytes(len(part))):
        check_refused(lambda: read_expression(path), may_pass=True)


def test_a_file_that_sends_hdf5_in_circles_is_refused(tmp_path):
    """Global heap: an object of length 0 is followed by itself, for ever."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["software_version"] = "spaceranger-1.0"
        file.attrs["text"] = ["a", "b"]
        file["x"] = np.arange(3)
    content = path.read_bytes()
    heap = content.index(b"GCOL")
    n_ended = 0
    for offset in range(heap + 8, heap + 64):
        path.write_bytes(content[:offset] + b"\xff" + content[offset + 1 :])
        n_ended += not comes_back(path)

        def read() -> None:
            with open_h5(path) as file:
                dict(file.attrs)

        check_refused(read, may_pass=True)
    assert n_ended
    path.write_bytes(content)
    assert comes_back(path)  # in another process than the one that was ended


def test_damaged_names_of_links_and_attributes(tmp_path):
    path = tmp_path / "x.h5"
    write_slide(path, None, 9, seed=0)
    make_foreign(path)
    content = path.read_bytes()
    for name in (b"embeddings", b"barcodes", b"coords", b"um_per_px", b"convention", b"encoder"):
        path.write_bytes(content.replace(name, b"\xff\xfe" + name[2:]))
        check_refused(lambda: FORMATS["HEST embeddings"].read(tmp_path), may_pass=True)


def test_a_zeroed_index_of_chunks_is_not_read_as_zeros(tmp_path):
    folder = files_of("patches", tmp_path)
    expected = 0
    for _ in damaged_everywhere(folder / "S.h5", 512, lambda part: bytes(len(part))):
        text = check_refused(lambda: FORMATS["patches"].read(folder), may_pass=True)
        expected += "content" in text
    assert expected


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("format", ["embeddings", "expression", "predictions"])
def test_a_group_inside_itself(tmp_path, format, sealed):
    folder = files_of(format, tmp_path)
    (path,) = folder.glob("*.h5*")
    if not sealed:
        make_foreign(path)
    with h5py.File(path, "r+") as file:
        file["loop"] = file["/"]
    assert "inside itself" in check_refused(lambda: FORMATS[format].read(folder))


def linked_twice(group: h5py.Group, depth: int) -> None:
    """Write groups, each in two places of the one around it: ``2^depth`` ways to the last."""
    for _ in range(depth):
        group["b"] = inner = group.create_group("a")
        inner.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        group = inner


def test_groups_in_more_places_than_can_be_read(tmp_path):
    path = files_of("foreign .h5ad", tmp_path) / "S.h5ad"
    with h5py.File(path, "r+") as file:
        linked_twice(file["uns"], 40)
    assert "too many places" in check_refused(lambda: read_expression(path))


def test_groups_in_two_places_are_read(tmp_path):
    path = files_of("foreign .h5ad", tmp_path) / "S.h5ad"
    with h5py.File(path, "r+") as file:
        linked_twice(file["uns"], 5)
        file["layers/again"] = file["X"]
    assert len(read_expression(path).barcodes) == 20


@pytest.mark.parametrize("value", [1e200, -1e12, np.nan, np.inf])
@pytest.mark.parametrize("name", ["HEST embeddings", "foreign .h5ad", "HEST patches"])
def test_places_that_no_image_has(tmp_path, name, value):
    folder = files_of(name, tmp_path)
    (path,) = folder.glob("*.h5*")
    key = "obsm/spatial" if path.suffix == ".h5ad" else "coords"

    def places(old: np.ndarray) -> np.ndarray:
        return np.where(np.arange(old.size).reshape(old.shape), old.astype(float), value)

    edit_h5(path, key, places)
    check_refused(lambda: FORMATS[name].read(folder))


@pytest.mark.parametrize("factor", [1e13, 1e25, 1e39])
def test_embeddings_that_overflow(tmp_path, factor):
    folder = files_of("HEST embeddings", tmp_path)
    edit_h5(folder / "T.h5", "embeddings", lambda x: x.astype(float) * factor)
    assert "embeddings" in check_refused(lambda: FORMATS["HEST embeddings"].read(folder))


@pytest.mark.parametrize("value", [2.0**60, -1.0, 0.5, np.nan, np.inf])
def test_counts_that_are_none(tmp_path, value):
    adata = anndata.AnnData(sp.csr_matrix(np.full((3, 2), value, np.float32)))
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert "raw counts" in check_refused(lambda: read_expression(tmp_path / "a.h5ad"))


@pytest.mark.parametrize("value", [0, -1, None, True, "4", [], 1e999, float("nan")])
@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("Visium", "V/outs/spatial/scalefactors_json.json", "spot_diameter_fullres"),
        ("Visium HD", "*/*/*/*/spatial/scalefactors_json.json", "microns_per_pixel"),
        ("HEST-1k", "V/metadata/TENX1.json", "pixel_size_um_estimated"),
        ("Xenium", "V/experiment.xenium", "pixel_size"),
    ],
)
def test_scales_that_are_none(tmp_path, name, file, key, value):
    if name == "Visium HD":
        pytest.importorskip("pyarrow", reason="Parquet is an extra")
    folder = files_of(name, tmp_path)
    (path,) = folder.glob(file)
    platform_files.corrupt(path, {key: value})
    text = check_refused(lambda: FORMATS[name].read(folder), may_pass=value is None)
    assert key in text or value is None


def weights(change: Callable[[dict[Any, Any], str, torch.Tensor], None]) -> Any:
    def apply(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        key = "image_transform.weight"
        change(state, key, state[key])
        torch.save(state, path)

    return apply


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


WEIGHTS = {
    "truncated": truncated,
    "NaN": weights(lambda s, k, x: x.view(-1)[:1].fill_(torch.nan)),
    "infinite": weights(lambda s, k, x: x.view(-1)[:1].fill_(torch.inf)),
    "complex": weights(lambda s, k, x: s.update({k: x.to(torch.complex64)})),
    "boolean": weights(lambda s, k, x: s.update({k: x > 0})),
    "sparse": weights(lambda s, k, x: s.update({k: x.to_sparse()})),
    "quantised": weights(
        lambda s, k, x: s.update({k: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)})
    ),
    "meta": weights(lambda s, k, x: s.update({k: x.to("meta")})),
    "key is a number": weights(lambda s, k, x: s.update({1: s.pop(k)})),
    "key is a tuple": weights(lambda s, k, x: s.update({("a", "b"): s.pop(k)})),
    "key cannot be printed": weights(lambda s, k, x: s.update({"\ud800\0": s.pop(k)})),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_no_network_takes(tmp_path, damage):
    folder = files_of("weights .pth", tmp_path)
    WEIGHTS[damage](folder / "w.pth")
    check_refused(lambda: FORMATS["weights .pth"].read(folder), 3, 4)


@pytest.mark.parametrize("gene", ["a\0b", "\ud800", "a\nb", "\x1b[2J"])
def test_names_of_genes_that_no_file_takes(tmp_path, gene):
    (tmp_path / "g.json").write_text(json.dumps({"genes": ["A", gene]}))
    check_refused(lambda: read_gene_list(tmp_path / "g.json"))


def test_a_long_list_of_genes_with_a_duplicate_takes_no_time(tmp_path):
    names = [f"G{i}" for i in range(20_000)]
    for genes in ([*names, "G1"], names * 2):
        (tmp_path / "g.json").write_text(json.dumps({"genes": genes}))
        with limits(seconds=2):
            check_refused(lambda: read_gene_list(tmp_path / "g.json"))


def test_an_image_far_larger_than_its_file(tmp_path):
    tags = {256: 400_000, 257: 400_000, 322: 256, 323: 256, 324: 8, 325: 0}  # sizes, one tile
    tags = {t: (4, v) for t, v in tags.items()}
    tags |= {258: (3, 8), 259: (3, 1), 262: (3, 2), 277: (3, 3), 284: (3, 1)}
    entries = [struct.pack("<HHII", tag, kind, 1, v) for tag, (kind, v) in sorted(tags.items())]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    (tmp_path / "x.tif").write_bytes((head + b"".join(entries)).ljust(501, b"\0"))

    def read() -> None:
        with open_image(tmp_path / "x.tif") as image:
            image.read_overview(4000)

    assert "400000 x 400000" in check_refused(read)


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv.gz"])
def test_a_line_without_end(tmp_path, name):
    with gzip.open(tmp_path / name, "wb", 1) as file:
        for _ in range(30):
            file.write(b"a" * 10_000_000)
    assert "without end" in check_refused(lambda: read_columns(tmp_path / name))


def test_names_that_fill_the_memory(tmp_path):
    path = platform_files.write_tenx(tmp_path / "x.h5", platform_files.counts_of(2), ["a", "b"])
    with h5py.File(path, "r+") as file:
        del file["matrix/barcodes"]
        file["matrix"].create_dataset("barcodes", (4 * 2**20,), "S128", chunks=(2**17,))
    assert "declared" in check_refused(lambda: read_tenx(path))


@pytest.mark.parametrize(
    "size", ["1000000000 1000000000 1", "6 9 999999999999", "-1 9 1", "6 9 1e9"]
)
def test_a_matrix_far_larger_than_its_file(tmp_path, size):
    folder = tmp_path / "m"
    platform_files.write_tenx_folder(
        folder, platform_files.counts_of(9), [f"b{i}" for i in range(9)]
    )
    text = f"%%MatrixMarket matrix coordinate integer general\n{size}\n1 1 1\n"
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(text.encode()))
    check_refused(lambda: read_tenx(folder))


@pytest.mark.parametrize("name", FORMATS)
def test_a_fifo_is_not_waited_for(tmp_path, name):
    folder = files_of(name, tmp_path)
    files = sorted({f for p in FORMATS[name].files for f in folder.glob(p) if f.is_file()})
    for file in files[:6]:
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        check_refused(lambda: FORMATS[name].read(folder), 3, 4, may_pass=True)
        file.unlink()
        file.write_bytes(content)


def test_a_shape_that_is_a_number(tmp_path):
    path = platform_files.write_tenx(tmp_path / "x.h5", platform_files.counts_of(2), ["a", "b"])
    edit_h5(path, "matrix/shape", lambda _: 0.5)
    assert "shape" in check_refused(lambda: read_tenx(path))


def test_an_offset_that_no_file_has(tmp_path):
    def read() -> None:
        with as_bad_input(tmp_path, "content", "tiles"), (tmp_path / "x").open("w+b") as file:
            file.seek(-1)

    assert "Invalid argument" in check_refused(read)


def test_names_of_genes_that_are_not_there(tmp_path):
    path = platform_files.write_tenx(tmp_path / "x.h5", platform_files.counts_of(2), ["a", "b"])
    edit_h5(path, "matrix/features/name", lambda names: names[:0])
    assert "names" in check_refused(lambda: read_tenx(path))


@pytest.mark.parametrize(
    "entries", ["1 1", "1 1 x", "0 1 1", "-5 1 1", "1 99 1", "1 1 1\n1 1", "9e99 1 1", "\0\0", ""]
)
def test_entries_of_a_matrix_that_cannot_be(tmp_path, entries):
    """Scipy's reader crashed on some."""
    folder = tmp_path / "m"
    counts = platform_files.counts_of(9)
    platform_files.write_tenx_folder(folder, counts, [f"b{i}" for i in range(9)])
    file = folder / "matrix.mtx.gz"
    head = gzip.decompress(file.read_bytes()).split(b"\n")[:3]
    size = next(line for line in head if line[:1].isdigit()).split()
    text = b"%%MatrixMarket matrix coordinate integer general\n" + b" ".join(size[:2]) + b" 1\n"
    file.write_bytes(gzip.compress(text + entries.encode()))
    check_refused(lambda: read_tenx(folder))


@pytest.mark.parametrize("value", [10**400, float("inf"), 0, -1, True, "1", None])
def test_a_length_that_cannot_be(value):
    assert "positive number" in check_refused(lambda: positive(value, "scalefactors.json", "scale"))
