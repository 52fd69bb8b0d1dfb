"""Chunks packed by threads have the bytes that HDF5 would write."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from stflow_graph.io import packed_chunks as module
from stflow_graph.io.packed_chunks import fletcher32, write_rows

OPTIONS = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def stored(file: Path, name: str) -> dict[tuple[int, ...], tuple[int, bytes]]:
    """Return the chunks of a dataset as they are stored, with the mask of filters left out."""
    with h5py.File(file) as opened:
        dataset = opened[name].id
        places = [dataset.get_chunk_info(i).chunk_offset for i in range(dataset.get_num_chunks())]
        return {place: dataset.read_direct_chunk(place) for place in places}


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("n_rows", [1, 7, 8, 20, 21, 23])
@pytest.mark.parametrize("values", ["noise", "zeros", "counts"])
def test_bytes_are_those_of_hdf5(tmp_path, threads, dtype, n_rows, values):
    rng = np.random.default_rng(0)
    made = {
        "noise": rng.standard_normal((n_rows, 5)),
        "zeros": np.zeros((n_rows, 5)),
        "counts": rng.poisson(0.5, (n_rows, 5)),
    }[values].astype(dtype)
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as opened:
        chunks = (min(7, n_rows), 5)
        of_hdf5, ours, at_once = (
            opened.create_dataset(name, made.shape, dtype, chunks=chunks, **OPTIONS)
            for name in ("hdf5", "ours", "at once")
        )
        of_hdf5[:] = made
        for start in range(0, n_rows, 14):
            rows = slice(start, min(start + 14, n_rows))
            write_rows(ours, rows, made[rows], threads)
        write_rows(at_once, slice(0, n_rows), made, threads)
    assert stored(file, "ours") == stored(file, "at once") == stored(file, "hdf5")
    with h5py.File(file) as opened:
        np.testing.assert_array_equal(opened["ours"][()], made)


def test_values_of_another_type_are_cast(tmp_path, threads):
    made = np.arange(20.0).reshape(10, 2)[:, ::-1]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", made.shape, "<f4", chunks=(5, 2), **OPTIONS)
        write_rows(data, slice(0, 10), made, threads)
        np.testing.assert_array_equal(data[()], made)


@pytest.mark.parametrize("change", ["rows", "chunks", "filters", "order", "none", "columns"])
def test_hdf5_packs_what_we_do_not(tmp_path, threads, monkeypatch, change):
    monkeypatch.setattr(module, "_pack", None)
    made, rows = np.arange(40, dtype=np.float32).reshape(20, 2), slice(0, 20)
    options = {"dtype": "<f4", "chunks": (5, 2), **OPTIONS}
    options |= {
        "rows": {},
        "chunks": {"chunks": None, "compression": None, "shuffle": None, "fletcher32": False},
        "filters": {"fletcher32": False},
        "order": {"dtype": ">f4"},
        "none": {"compression": None, "compression_opts": None, "shuffle": False},
        "columns": {"chunks": (5, 1)},
    }[change]
    if options["chunks"] is None:
        options = {"dtype": "<f4"}
    if change == "rows":
        rows = slice(3, 17)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("a", made.shape, **options)
        write_rows(data, rows, made[rows], threads)
        np.testing.assert_array_equal(data[rows], made[rows])


def test_damage_is_noticed(tmp_path, threads):
    made = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as opened:
        data = opened.create_dataset("a", made.shape, "<f4", chunks=(50, 5), **OPTIONS)
        write_rows(data, slice(0, 100), made, threads)
        place = data.id.get_chunk_info(1).byte_offset + 40
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with h5py.File(file) as opened:
        np.testing.assert_array_equal(opened["a"][:50], made[:50])
        with pytest.raises(OSError, match="checksum|filter"):
            opened["a"][50:]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", 0), (b"\0" * 9, 0), (b"abcde", 0xF04FC729), (b"abcdef", 0x56502D2A)],
)
def test_checksums_known_from_elsewhere(content, expected):
    """Of Wikipedia's examples, whose words are little-endian."""
    words = np.frombuffer(content + bytes(len(content) % 2), dtype="<u2")
    assert fletcher32(words.astype(">u2").tobytes()) == expected
