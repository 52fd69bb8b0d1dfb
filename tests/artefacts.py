"""Files of ours read or written whole, which the package does block by block."""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.io.predictions import Block, write_prediction_blocks
from stflow_graph.io.seal import SEAL


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


def unseal(file: h5py.File) -> None:
    """Make a file of ours one of before there were checksums, so that it can be edited."""
    if file.attrs.pop(SEAL, None) is not None:
        file.attrs["complete"] = 1


def edit_h5(path: Path, key: str, change: Any) -> None:
    """Replace a dataset of a file, keeping its attributes.

    Args:
        path: the file.
        key: of the dataset; a new one is created.
        change: the new value, or a function of the old one; None removes it.
    """
    with h5py.File(path, "r+") as file:
        unseal(file)
        attrs = dict(file[key].attrs) if key in file else {}
        old = file.pop(key, None)
        if callable(change):
            change = change(old[()] if isinstance(old, h5py.Dataset) else None)
        if change is not None:
            file[key] = change
        if attrs and key in file:
            file[key].attrs.update(attrs)
