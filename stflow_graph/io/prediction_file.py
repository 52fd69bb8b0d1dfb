"""Predictions that are read block by block: names and places in memory, values when needed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from stflow_graph.errors import BadInput
from stflow_graph.io.coords import check_coords, check_finite
from stflow_graph.io.hdf5 import check_unique, dataset, open_h5, read_strings
from stflow_graph.io.predictions import (
    KEY,
    LEVELS,
    OBSERVED,
    QUANTILES,
    chunk_rows,
    stored_provenance,
)

_BLOCK_BYTES = 2**25
_MEAN = "mean"


class StoredPicture(NamedTuple):
    """A reduced image of the slide.

    Attributes:
        pixels: ``[h, w, 3]`` uint8.
        scale: its pixels per level-0 pixel.
    """

    pixels: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionFile:
    """An open prediction.

    Attributes:
        file: its file.
        provenance: as of :class:`stflow_graph.io.predictions.Prediction`.
        barcodes: N names.
        genes: G names.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y).
        n_samples: S, 0 without samples.
    """

    file: h5py.File
    provenance: dict[str, Any]
    barcodes: list[str]
    genes: list[str]
    coords: np.ndarray
    n_samples: int

    @property
    def slide(self) -> str:
        """The slide's name."""
        return str(self.provenance["slide"])

    @property
    def path(self) -> str:
        """The file's path, for messages."""
        return str(self.file.filename)

    def __len__(self) -> int:
        """Return N."""
        return len(self.barcodes)

    def blocks(self, layer: str = _MEAN) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their values ``[n, G]`` float32, whole chunks of the file at a time.

        Args:
            layer: ``"mean"``, ``"std"`` or ``"sample_<i>"``.

        Raises:
            BadInput: no such layer, or values that are not finite.
        """
        values = self.layer(layer)
        chunk = chunk_rows(len(self.genes))
        step = chunk * max(1, _BLOCK_BYTES // (4 * len(self.genes) * chunk))
        for start in range(0, len(self), step):
            rows = slice(start, min(start + step, len(self)))
            block = np.asarray(values[rows], dtype=np.float32)
            check_finite(block, self.path, values.name[1:], len(self), start)
            yield rows, block

    def columns(self, columns: np.ndarray, layer: str = _MEAN) -> np.ndarray:
        """Return the values ``[N, g]`` float32 of some genes; the others are in memory briefly.

        Args:
            columns: ``[g]`` their columns.
            layer: as of :meth:`blocks`.
        """
        result = np.empty((len(self), len(columns)), np.float32)
        for rows, block in self.blocks(layer):
            result[rows] = block[:, columns]
        return result

    def layer(self, name: str) -> h5py.Dataset:
        """Return the values of a layer, which are not read yet.

        Raises:
            BadInput: no such layer, of another shape or no numbers; the message lists the layers.
        """
        values = self.file.get("X" if name == _MEAN else f"layers/{name}")
        shape = len(self.barcodes), len(self.genes)
        if not isinstance(values, h5py.Dataset) or values.shape != shape:
            layers = [_MEAN, *self.file.get("layers", {})]
            raise BadInput(self.path, "layer", name, f"one of {', '.join(layers)}")
        if values.dtype.kind not in "iuf":
            raise BadInput(self.path, values.name[1:], str(values.dtype), "numbers")
        return values

    def expected_pearson(self) -> np.ndarray | None:
        """Return the ``[G]`` scores of the model on held-out training slides, None without them."""
        scores = self.file.get("var/expected_pearson")
        if not isinstance(scores, h5py.Dataset):
            return None
        if scores.shape != (len(self.genes),) or scores.dtype.kind not in "iuf":
            found = f"{scores.dtype} {scores.shape}"
            raise BadInput(self.path, "var/expected_pearson", found, "a number for each gene")
        return np.asarray(scores[()], dtype=np.float64)

    def training_quantiles(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return quantiles ``[G, L]`` of predictions for training slides, and levels ``[L]``.

        None where the prediction is of a model that does not know them.
        """
        values = self.file.get(f"varm/{QUANTILES}")
        levels = self.file.get(f"uns/{KEY}/{LEVELS}")
        if not (isinstance(values, h5py.Dataset) and isinstance(levels, h5py.Dataset)):
            return None
        are_numbers = values.dtype.kind in "iuf" and levels.dtype.kind in "iuf"
        if values.shape != (len(self.genes), levels.size) or levels.ndim != 1 or not are_numbers:
            found = f"{values.dtype} {values.shape} for levels {levels.dtype} {levels.shape}"
            raise BadInput(self.path, f"varm/{QUANTILES}", found, "quantiles of each gene")
        return np.asarray(values[()], np.float64), np.asarray(levels[()], np.float64)

    def picture(self) -> StoredPicture | None:
        """Return the image that the prediction carries, None without one.

        Raises:
            BadInput: it is no image.
        """
        library = self.file.get(f"uns/spatial/{self.slide}")
        if not isinstance(library, h5py.Group):
            return None
        pixels = dataset(library, ["images/hires"])
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            found = f"{pixels.dtype} {pixels.shape}"
            raise BadInput(self.path, pixels.name[1:], found, "height x width x 3 uint8")
        scale = dataset(library, ["scalefactors/tissue_hires_scalef"])
        if scale.shape != () or scale.dtype.kind not in "iuf" or not 0 < scale[()] < np.inf:
            raise BadInput(self.path, scale.name[1:], str(scale[()]), "a positive number")
        return StoredPicture(pixels[()], float(scale[()]))

    def n_measured(self) -> int:
        """Return the number of spots whose values were measured and informed the others."""
        flags = self.file.get(f"obs/{OBSERVED}")
        return int(np.count_nonzero(flags[()])) if isinstance(flags, h5py.Dataset) else 0


@contextlib.contextmanager
def open_prediction(path: str | Path) -> Iterator[PredictionFile]:
    """Open a file that ``sample`` wrote.

    Raises:
        BadInput: not such a file, one without spots or genes, or names that are not unique.
    """
    with open_h5(path) as file:
        provenance = stored_provenance(file, path)
        barcodes, genes = (_index(file, name) for name in ("obs", "var"))
        for names, field in ((barcodes, "obs_names"), (genes, "var_names")):
            check_unique(names, path, field)
            if not names:
                raise BadInput(path, field, names, "at least one name")
        coords = dataset(file, ["obsm/spatial"])[()]
        yield PredictionFile(
            file,
            provenance,
            barcodes,
            genes,
            check_coords(coords, path, "obsm['spatial']", len(barcodes)),
            _n_samples(file, path),
        )


def _index(file: h5py.File, name: str) -> list[str]:
    """Return the names of spots or genes, the index of a stored data frame."""
    table = file.get(name)
    if not isinstance(table, h5py.Group):
        raise BadInput(file.filename, name, sorted(file), f"a table {name!r}")
    return read_strings(dataset(file, [f"{name}/{table.attrs.get('_index', '_index')}"]))


def _n_samples(file: h5py.File, path: str | Path) -> int:
    layers = file.get("layers")
    names = {name for name in layers or () if str(name).startswith("sample_")}
    if names != {f"sample_{i}" for i in range(len(names))}:
        raise BadInput(path, "layers", sorted(names), f"{len(names)} samples from sample_0 on")
    return len(names)
