"""Embedding files in HEST's and STFlow's layout: ``embeddings``, ``barcodes``, ``coords``.

Features of TRIDENT and CLAM are read too, see ``io.grid_features``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stflow_graph.errors import BadInput, unquoted
from stflow_graph.io.atomic import atomic_path
from stflow_graph.io.grid_features import coords_files, encoder_of, read_grid_patches
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
        data: ``[N, F]`` numbers, read by slices of rows.
        coords: ``[N, 2]`` float64, level-0 pixels (x, y).
        barcodes: N names.
        attrs: the file's attributes.
        encoder: our name of the encoder, None where the file does not tell it for certain.
        field: the key of ``data``, for messages.
    """

    path: Path
    data: h5py.Dataset | _OnlySlide | np.ndarray
    coords: np.ndarray
    barcodes: list[str]
    attrs: dict[str, Any]
    encoder: str | None = None
    field: str = "embeddings"

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
            chunks = getattr(self.data, "chunks", None)
            chunk = chunks[0] if chunks else 1
            n_rows = chunk * max(1, _BLOCK_BYTES // (4 * self.width * chunk))
        for start in range(0, len(self), n_rows):
            rows = slice(start, min(start + n_rows, len(self)))
            x = self.data[rows].astype(np.float32, copy=False)
            bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
            if len(bad):
                first = (bad[:3] + start).tolist()
                found = unquoted(f"{len(bad)} of {len(self)} rows not finite, first rows {first}")
                raise BadInput(self.path, self.field, found, "finite numbers")
            yield rows, x

    def read(self) -> np.ndarray:
        """Return all embeddings, ``[N, F]`` float32.

        Raises:
            BadInput: numbers that are not finite.
        """
        ((_, x),) = self.blocks(len(self))
        return x


class _OnlySlide:
    """A dataset ``[1, N, F]``, as older TRIDENT writes features, seen as ``[N, F]``."""

    def __init__(self, data: h5py.Dataset) -> None:
        self._data = data
        self.shape = data.shape[1:]
        self.ndim = 2
        self.dtype = data.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self._data[0, rows])


@contextlib.contextmanager
def open_embeddings(path: str | Path) -> Iterator[EmbeddingFile]:
    """Open and validate an embedding file: ours, HEST's, STFlow's, TRIDENT's or CLAM's.

    A file with ``features`` and without barcodes is one of TRIDENT or CLAM: barcodes are made
    from its places, and ``coords`` are the centres of its patches. A .pt file of theirs needs the
    .h5 file with the places where those tools put it.

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
            rows = _OnlySlide(data) if data.ndim == 3 and len(data) == 1 else data
            yield _of_grid(path, rows, dataset(file, ["coords"]), dict(data.attrs))
            return
        barcodes = read_strings(dataset(file, ["barcodes", "barcode"]))
        _check_numbers(path, field, data, len(barcodes), "barcode")
        check_unique(barcodes, path, "barcodes")
        coords = check_coords(dataset(file, ["coords"])[()], path, "coords", len(barcodes))
        attrs = {key: _plain_value(value) for key, value in file.attrs.items()}
        # other tools write free text there
        encoder = str(attrs.get("encoder")) if attrs.get("format") == FORMAT else None
        yield EmbeddingFile(path, data, coords, barcodes, attrs, encoder, field)


@contextlib.contextmanager
def _open_tensor(path: Path) -> Iterator[EmbeddingFile]:
    from stflow_graph.io.state_dict import read_tensor  # torch takes a second to import

    data = read_tensor(path).numpy()
    data = data[0] if data.ndim == 3 and len(data) == 1 else data
    places = coords_files(path)
    if not places:
        fix = f"put {path.stem}.h5 of the patching beside it, in ../h5_files or in ../patches"
        raise BadInput(path, "coords", unquoted("none"), "an .h5 file with the places", fix)
    with open_h5(places[0]) as file:
        yield _of_grid(path, data, dataset(file, ["coords"]), {})


def _of_grid(
    path: Path,
    data: h5py.Dataset | _OnlySlide | np.ndarray,
    coords: h5py.Dataset,
    attrs: Mapping[str, Any],
) -> EmbeddingFile:
    _check_numbers(path, "features", data, coords.shape[0] if coords.ndim else 0, "place")
    grid = read_grid_patches(path, coords, len(data))
    encoder = encoder_of(path, attrs)
    return EmbeddingFile(
        path, data, grid.coords, grid.barcodes, grid.attrs, encoder, field="features"
    )


def _check_numbers(
    path: Path, field: str, data: h5py.Dataset | _OnlySlide | np.ndarray, n: int, item: str
) -> None:
    if data.ndim != 2 or data.shape[1] == 0:
        raise BadInput(path, field, data.shape, "(N, channels)")
    if data.dtype.kind not in "fiu":
        raise BadInput(path, field, str(data.dtype), "real numbers")
    if n == 0:
        raise BadInput(path, f"{item}s", unquoted("0 spots"), "at least one spot")
    if len(data) != n:
        raise BadInput(path, field, unquoted(f"{len(data)} rows"), f"{n}, one per {item}")


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
