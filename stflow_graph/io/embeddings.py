"""Embedding files in HEST's and STFlow's layout: ``embeddings``, ``barcodes``, ``coords``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.atomic import atomic_path
from stflow_graph.io.hdf5 import (
    as_bytes,
    check_coords,
    check_unique,
    dataset,
    open_h5,
    read_strings,
)

FORMAT = "stflow_graph.embeddings/1"
_BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The embeddings of one slide's patches.

    Attributes:
        x: ``[N, F]`` float32.
        coords: ``[N, 2]`` float64, level-0 pixels (x, y).
        barcodes: N names.
        attrs: the file's attributes (encoder, um_per_px, convention, ...).
    """

    x: np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EmbeddingFile:
    """An open embedding file, its embeddings read in blocks of rows.

    Attributes:
        path: where it is.
        data: dataset ``[N, F]`` of numbers.
        coords: ``[N, 2]`` float64, level-0 pixels (x, y).
        barcodes: N names.
        attrs: the file's attributes.
    """

    path: Path
    data: h5py.Dataset
    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def width(self) -> int:
        """F, channels of an embedding."""
        return int(self.data.shape[1])

    def blocks(self, n_rows: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Give the embeddings in the file's order, each block with its rows.

        Args:
            n_rows: of a block; None takes about 16 MB, whole chunks of the file.

        Raises:
            BadInput: numbers that are not finite; counts and shows the block's first rows.
        """
        if n_rows is None:
            chunk = self.data.chunks[0] if self.data.chunks else 1
            n_rows = chunk * max(1, _BLOCK_BYTES // (4 * self.width * chunk))
        for start in range(0, len(self), n_rows):
            rows = slice(start, min(start + n_rows, len(self)))
            x = self.data[rows].astype(np.float32, copy=False)
            bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
            if len(bad):
                field, n = self.data.name.strip("/"), len(self)
                first = (bad[:3] + start).tolist()
                found = plain(f"{len(bad)} of {n} rows not finite, first rows {first}")
                raise BadInput(self.path, field, found, "finite numbers")
            yield rows, x

    def read(self) -> np.ndarray:
        """Return all embeddings, ``[N, F]`` float32.

        Raises:
            BadInput: numbers that are not finite.
        """
        ((_, x),) = self.blocks(len(self))
        return x


@contextlib.contextmanager
def open_embeddings(path: str | Path) -> Iterator[EmbeddingFile]:
    """Open and validate an embedding file (ours, HEST's, STFlow's).

    Raises:
        BadInput: keys missing, lengths that differ, not numbers, zero spots, coordinates that are
            not finite.
    """
    with open_h5(path) as file:
        data = dataset(file, ["embeddings", "features"])
        barcodes = read_strings(dataset(file, ["barcodes", "barcode"]))
        n = len(barcodes)
        if data.ndim != 2 or data.shape[1] == 0:
            raise BadInput(path, data.name.strip("/"), data.shape, "(N, channels)")
        if data.dtype.kind not in "fiu":
            raise BadInput(path, data.name.strip("/"), str(data.dtype), "real numbers")
        if n == 0:
            raise BadInput(path, "barcodes", plain("0 spots"), "at least one spot")
        if len(data) != n:
            raise BadInput(
                path, data.name.strip("/"), plain(f"{len(data)} rows"), f"{n}, one per barcode"
            )
        check_unique(barcodes, path, "barcodes")
        coords = check_coords(dataset(file, ["coords"])[()], path, "coords", n)
        attrs = {key: _plain_value(value) for key, value in file.attrs.items()}
        yield EmbeddingFile(Path(path), data, coords, barcodes, attrs)


def read_embeddings(path: str | Path) -> Embeddings:
    """Read and validate an embedding file as a whole; see :func:`open_embeddings`.

    Raises:
        BadInput: as :func:`open_embeddings`; or embeddings that are not finite.
    """
    with open_embeddings(path) as file:
        return Embeddings(file.read(), file.coords, file.barcodes, file.attrs)


def _plain_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class EmbeddingWriter:
    """Writes embeddings batch by batch; used through :func:`write_embeddings`.

    ``attrs`` are the file's attributes, for what is known only at the end.
    """

    def __init__(self, file: h5py.File, n: int, width: int) -> None:
        self.attrs = file.attrs
        self._data = file.create_dataset(
            "embeddings",
            (n, width),
            np.float32,
            chunks=(min(n, max(1, 2**18 // (4 * width))), width),
            fletcher32=True,
        )
        self.written = 0

    def append(self, x: np.ndarray) -> None:
        """Write the next rows, ``[B, F]``."""
        self._data[self.written : self.written + len(x)] = x
        self.written += len(x)


@contextlib.contextmanager
def write_embeddings(
    path: str | Path,
    barcodes: Sequence[str],
    coords: np.ndarray,
    width: int,
    attrs: Mapping[str, Any],
) -> Iterator[EmbeddingWriter]:
    """Write an embedding file atomically; the body appends all N rows in order.

    Args:
        path: the final path.
        barcodes: N names.
        coords: ``[N, 2]`` level-0 pixels.
        width: embedding channels F.
        attrs: provenance: encoder, weights_sha256, patches_sha256, um_per_px, convention.

    Raises:
        RuntimeError: the body appended fewer or more than N rows.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        writer = EmbeddingWriter(file, len(barcodes), width)
        file.create_dataset("barcodes", data=as_bytes(barcodes))
        file.create_dataset("coords", data=np.rint(np.asarray(coords)).astype(np.int64))
        file.attrs.update({key: value for key, value in attrs.items() if value is not None})
        yield writer
        if writer.written != len(barcodes):
            raise RuntimeError(f"{path}: {writer.written} of {len(barcodes)} rows were written")
        file.attrs["format"] = FORMAT
        file.attrs["complete"] = 1


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Return the attributes of an embedding file without reading its arrays."""
    with open_h5(path) as file:
        return {key: _plain_value(value) for key, value in file.attrs.items()}
