"""Files of ours read or written whole, which the package does block by block."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.io.predictions import Block, write_prediction_blocks
from stflow_graph.io.seal import SEAL, content_hash


class Embeddings(NamedTuple):
    """What an embedding file holds."""

    x: np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]


def read_embeddings(path: str | Path) -> Embeddings:
    with open_embeddings(path) as file:
        return Embeddings(file.read(), file.coords, file.barcodes, file.attrs)


def write_prediction(
    path: str | Path,
    mean: np.ndarray,
    barcodes: list[str],
    genes: list[str],
    coords: np.ndarray,
    *,
    samples: np.ndarray | None = None,
    **options: Any,
) -> None:
    """Write a prediction ``[N, G]`` and its samples ``[S, N, G]`` as one block."""
    blocks, n = [Block(slice(0, len(mean)), mean, samples)], 0 if samples is None else len(samples)
    write_prediction_blocks(path, blocks, barcodes, genes, coords, n_samples=n, **options)


@contextlib.contextmanager
def resealed(path: Path) -> Iterator[h5py.File]:
    """Open a file to edit it, and make the checksum of one of ours fit again, if there is one."""
    with h5py.File(path, "r+") as file:
        yield file
        if SEAL in file.attrs:
            with contextlib.suppress(KeyError, ValueError):  # dangling links, no Unicode
                file.attrs[SEAL] = content_hash(file)


def make_foreign(path: Path) -> None:
    """Make a file of ours one of nobody's: without our marks, in the oldest format of HDF5."""
    ours = path.rename(path.with_name("ours"))
    with h5py.File(ours) as source, h5py.File(path, "w") as file:
        for key in source:
            source.copy(key, file)
        marks = ("format", "complete", SEAL)
        file.attrs.update({key: v for key, v in source.attrs.items() if key not in marks})
    ours.unlink()


def edit_h5(path: Path, key: str, change: Any) -> None:
    """Replace a dataset of a file, keeping its attributes.

    Args:
        path: the file.
        key: of the dataset; a new one is created.
        change: the new value, or a function of the old one; None removes it.
    """
    with resealed(path) as file:
        attrs = dict(file[key].attrs) if key in file else {}
        old = file.pop(key, None)
        if callable(change):
            change = change(old[()] if isinstance(old, h5py.Dataset) else None)
        if change is not None:
            file[key] = change
        if attrs and key in file:
            file[key].attrs.update(attrs)
