"""Embedding files in HEST's and STFlow's layout: ``embeddings``, ``barcodes``, ``coords``.

Features of TRIDENT and CLAM are read too, see ``io.grid_features``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.coords import check_finite
from stflow_graph.io.grid_features import coords_files, encoder_of, read_grid_patches
from stflow_graph.io.hdf5 import dataset, open_h5, plain_attrs
from stflow_graph.io.spot_rows import RowWriter, check_n_rows, read_positions, write_rows

FORMAT = "stflow_graph.embeddings/1"
_BLOCK_BYTES = 2**24
_MAX_CHANNEL = 1e12  # encoders' are below 1e4; sums of squares must stay finite in float32


@dataclasses.dataclass(frozen=True)
class EmbeddingFile:
    """An open embedding file, its embeddings read in blocks of rows.

    Attributes:
        path: the file.
        data: ``[N, F]`` numbers, or ``[1, N, F]`` as older TRIDENT writes.
        coords: ``[N, 2]`` float64, level-0 pixels (x, y).
        barcodes: N names.
        attrs: the file's attributes.
        encoder: our name of the encoder, None if the file does not identify it.
        field: the key of ``data``, for messages.
        watch: called with the rows and the embeddings of every block that is read.
    """

    path: Path
    data: h5py.Dataset | np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]
    encoder: str | None = None
    field: str = "embeddings"
    watch: Callable[[slice, np.ndarray], None] | None = None

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def width(self) -> int:
        """F, channels of an embedding."""
        return int(self.data.shape[-1])

    def blocks(self, n_rows: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings in the file's order, each block with its rows.

        Args:
            n_rows: of a block; None takes about 16 MB, whole chunks of the file.

        Raises:
            BadInput: numbers that are not finite, with a count and the block's first rows, or so
                large that their squares are not.
        """
        if n_rows is None:
            chunks = getattr(self.data, "chunks", None)
            chunk = chunks[-2] if chunks else 1
            n_rows = chunk * max(1, _BLOCK_BYTES // (4 * self.width * chunk))
        for start in range(0, len(self), n_rows):
            rows = slice(start, min(start + n_rows, len(self)))
            x = self.data[rows] if self.data.ndim == 2 else self.data[0, rows]
            with np.errstate(over="ignore"):  # infinite ones are refused
                x = x.astype(np.float32, copy=False)
            # of a number that is not finite, one of the two is not; nothing else is allocated
            largest = max(x.max(initial=0), -x.min(initial=0))
            if not largest <= _MAX_CHANNEL:
                check_finite(x, self.path, self.field, len(self), start)
                found = unquoted(f"values up to {largest:g}")
                raise BadInput(self.path, self.field, found, f"embeddings below {_MAX_CHANNEL:g}")
            if self.watch is not None:
                self.watch(rows, x)
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
    """Open and validate an embedding file: ours, HEST's, STFlow's, TRIDENT's or CLAM's.

    A file with ``features`` and without barcodes is one of TRIDENT or CLAM: its barcodes are
    derived from its places, and ``coords`` are the centres of its patches. A .pt file of theirs
    needs the .h5 file with the places, where those tools write it.

    Raises:
        BadInput: keys missing, lengths that differ, not numbers, zero spots, coordinates that are
            not finite.
    """
    path = Path(path)
    if path.suffix == ".pt":
        with _open_tensor(path) as source:
            yield source
        return
    with open_h5(path) as file:
        data = dataset(file, ["embeddings", "features"])
        field = data.name.strip("/")
        if field == "features" and not {"barcodes", "barcode"} & set(file):
            yield _of_grid(path, data, dataset(file, ["coords"]), dict(data.attrs))
            return
        n_rows = _check_matrix(path, field, data)
        barcodes, coords = read_positions(file, field, n_rows)
        attrs = plain_attrs(file.attrs)
        # other tools write free text there
        known = attrs.get("format") == FORMAT and "encoder" in attrs
        encoder = str(attrs["encoder"]) if known else None
        yield EmbeddingFile(path, data, coords, barcodes, attrs, encoder, field)


@contextlib.contextmanager
def _open_tensor(path: Path) -> Iterator[EmbeddingFile]:
    from stflow_graph.io.state_dict import read_tensor  # torch takes a second to import

    data = read_tensor(path).numpy()
    places = coords_files(path)
    if not places:
        fix = f"put {path.stem}.h5 of the patching beside it, in ../h5_files or in ../patches"
        raise BadInput(path, "coords", unquoted("none"), "an .h5 file with the places", fix)
    with open_h5(places[0]) as file:
        yield _of_grid(path, data, dataset(file, ["coords"]), {})


def _of_grid(
    path: Path, data: h5py.Dataset | np.ndarray, coords: h5py.Dataset, attrs: Mapping[str, Any]
) -> EmbeddingFile:
    n = _check_matrix(path, "features", data)
    check_n_rows(path, "features", n, coords.shape[0] if coords.ndim else 0, "place")
    grid, encoder = read_grid_patches(path, coords, n), encoder_of(path, attrs)
    return EmbeddingFile(path, data, grid.coords, grid.barcodes, grid.attrs, encoder, "features")


def _check_matrix(path: Path, field: str, data: h5py.Dataset | np.ndarray) -> int:
    """Return the number of rows of a dataset ``[N, F]`` or ``[1, N, F]``."""
    if data.ndim not in (2, 3) or data.shape[-1] == 0 or data.shape[:-2] not in ((), (1,)):
        raise BadInput(path, field, data.shape, "(N, channels)")
    if data.dtype.kind not in "fiu":
        raise BadInput(path, field, str(data.dtype), "real numbers")
    return int(data.shape[-2])


@contextlib.contextmanager
def write_embeddings(
    path: str | Path,
    barcodes: Sequence[str],
    coords: np.ndarray,
    width: int,
    attrs: Mapping[str, Any],
) -> Iterator[RowWriter]:
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
    chunks = (min(len(barcodes), max(1, 2**18 // (4 * width))), width)
    with write_rows(
        path,
        barcodes,
        coords,
        keys=("barcodes", "embeddings"),
        row_shape=(width,),
        format=FORMAT,
        dtype=np.float32,
        chunks=chunks,
    ) as writer:
        writer.attrs.update({key: value for key, value in attrs.items() if value is not None})
        yield writer


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Return the attributes of an embedding file without reading its arrays."""
    with open_h5(path) as file:
        return plain_attrs(file.attrs)
