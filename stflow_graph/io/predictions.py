"""Predictions of one slide as an .h5ad that scanpy and squidpy open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Required, TypeAlias, TypedDict, Unpack

import h5py
import numpy as np
import pandas as pd

from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.io.expression import spatial
from stflow_graph.io.h5ad import read_h5ad, write_elements
from stflow_graph.io.hdf5 import check_unique, create_h5, dataset, open_h5
from stflow_graph.io.packed_chunks import write_rows
from stflow_graph.io.picture import Picture
from stflow_graph.io.process import available_cores
from stflow_graph.io.provenance import KEY, parse_provenance

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT = "stflow_graph.predictions/1"
OBSERVED = "observed"
QUANTILES, LEVELS = "training_quantiles", "quantile_levels"
WARNINGS = "warnings"  # of the provenance
_CHUNK_BYTES = 2**20
_NOTHING: Mapping[str, Any] = {}
_Matrix: TypeAlias = h5py.Dataset | np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted expression of one slide.

    Attributes:
        mean: ``[N, G]`` float32, log1p units.
        barcodes: N names.
        genes: G names.
        coords: ``[N, 2]`` float64 level-0 pixels (x, y).
        samples: ``[S, N, G]`` float32, or None when one sample was drawn.
        provenance: plain values and lists: slide, dataset, target, checkpoint hash, seed, ...
        expected_pearson: ``[G]`` scores of the model on held-out training slides, or None.
        observed: ``[N]`` and ``[G]`` booleans: spots and genes whose values were measured and
            informed the others; None where none were.
    """

    mean: np.ndarray
    barcodes: list[str]
    genes: list[str]
    coords: np.ndarray
    samples: np.ndarray | None
    provenance: dict[str, Any]
    expected_pearson: np.ndarray | None = None
    observed: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def slide(self) -> str:
        """The slide's name."""
        return str(self.provenance["slide"])


class Block(NamedTuple):
    """The prediction of some of a slide's spots.

    Attributes:
        rows: of the slide.
        mean: ``[n, G]`` log1p units.
        samples: ``[S, n, G]``, or None.
        between: ``[n, G]`` standard deviation between the members' means, or None.
    """

    rows: slice
    mean: np.ndarray
    samples: np.ndarray | None
    between: np.ndarray | None = None


def chunk_rows(n_genes: int) -> int:
    """Return the rows of a chunk of the file; blocks of a multiple are written fastest."""
    return max(1, _CHUNK_BYTES // (4 * n_genes))


class Late(NamedTuple):
    """What is known of a prediction when all its blocks are there.

    Attributes:
        provenance: further entries.
        obs: ``[N]`` columns of the spots.
    """

    provenance: Mapping[str, Any]
    obs: Mapping[str, np.ndarray]


class PredictionInfo(TypedDict, total=False):
    """Information stored with the values of a prediction.

    Attributes:
        provenance: JSON-like values; must name ``slide`` and ``target``. Stored as JSON text in
            ``uns["stflow_graph"]`` so that lists and None survive.
        quantiles: ``[G, L]`` of the expression predicted for training slides, and their levels
            ``[L]``; stored as ``varm["training_quantiles"]`` and in ``uns["stflow_graph"]``.
        gene_names: columns of the genes' other names, ``[G]`` each.
        late_obs: names of columns of the spots, and their types, that :class:`Late` gives.
        late: called when all blocks are there, for what is known only then.
        n_samples: S of every block; 0 without samples.
        has_spread: whether blocks with samples have the spread between members.
        expected_pearson: ``[G]`` scores of the model on held-out training slides, stored as
            ``var["expected_pearson"]``.
        picture: the slide's image, stored in ``uns["spatial"][<slide>]``.
        observed: the rows and the columns of measured values that informed the prediction; their
            places are true in ``obs["observed"]`` and ``var["observed"]``.
    """

    provenance: Required[Mapping[str, Any]]
    quantiles: tuple[np.ndarray, np.ndarray] | None
    gene_names: Mapping[str, Sequence[str]]
    late_obs: Mapping[str, type[np.generic]]
    late: Callable[[], Late]
    n_samples: int
    has_spread: bool
    expected_pearson: np.ndarray | None
    picture: Picture | None
    observed: tuple[np.ndarray, np.ndarray] | None


def write_prediction_blocks(
    path: str | Path,
    blocks: Iterable[Block],
    barcodes: Sequence[str],
    genes: Sequence[str],
    coords: np.ndarray,
    **info: Unpack[PredictionInfo],
) -> None:
    """Write a prediction atomically, block by block as they come.

    Args:
        path: the final path.
        blocks: the prediction; together all N rows, each once. The means are stored as ``X``,
            the samples as ``layers["sample_0"]`` ... and their standard deviation as
            ``layers["std"]``; where blocks have it, its part between members as
            ``layers["epistemic"]`` and the rest of the variance as ``layers["aleatoric"]``.
        barcodes: N names.
        genes: G names.
        coords: ``[N, 2]`` level-0 pixels (x, y).
        **info: see :class:`PredictionInfo`.

    Raises:
        BadInput: spots outside the picture's image.
        ValueError: a value is not finite, rows are missing, or the provenance lacks a name.
        StorageFailed: the disk is full; a file that was at the path stays.
    """
    adata = _without_values(barcodes, genes, coords, info)
    with create_h5(path, FORMAT) as (file, output):
        write_elements(file, adata)
        means = _matrix(file, "X", adata.shape)
        layers = [_matrix(file, f"layers/{name}", adata.shape) for name in _layers(info)]
        _fill(means, layers, blocks, path, output.check)
        if "late" in info:
            late = info["late"]()
            file[f"uns/{KEY}/provenance"][()] = _provenance_text(info, late.provenance)
            for name, values in late.obs.items():
                file[f"obs/{name}"][...] = values


def prediction_anndata(
    blocks: Iterable[Block],
    barcodes: Sequence[str],
    genes: Sequence[str],
    coords: np.ndarray,
    **info: Unpack[PredictionInfo],
) -> AnnData:
    """Return in memory what :func:`write_prediction_blocks` would write; arguments as there."""
    adata = _without_values(barcodes, genes, coords, info)
    means, *layers = (np.empty(adata.shape, np.float32) for _ in ("X", *_layers(info)))
    _fill(means, layers, blocks, f"prediction of {info['provenance']['slide']}")
    if "late" in info:
        late = info["late"]()
        adata.uns[KEY]["provenance"] = _provenance_text(info, late.provenance)
        for name, values in late.obs.items():
            adata.obs[name] = values
    adata.X = means
    for name, layer in zip(_layers(info), layers, strict=True):
        adata.layers[name] = layer
    return adata


def _layers(info: PredictionInfo) -> list[str]:
    n = info.get("n_samples", 0)
    parts = ["epistemic", "aleatoric"] if info.get("has_spread") else []
    return [*(f"sample_{i}" for i in range(n)), "std", *parts] if n else []


def _fill(
    means: _Matrix,
    layers: Sequence[_Matrix],
    blocks: Iterable[Block],
    file: str | Path,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write blocks into the matrices of the mean, of each sample and of their deviation.

    Args:
        means: ``[N, G]``.
        layers: of each sample, and of their deviation.
        blocks: see :func:`write_prediction_blocks`.
        file: for messages.
        check: called after every block, to raise errors of the disk.
    """
    n_written = 0
    with ThreadPoolExecutor(available_cores()) as threads:
        for rows, mean, samples, between in blocks:
            if not np.isfinite(mean).all():
                raise ValueError(f"{file}: a prediction is not finite")
            written = [mean]
            if layers:
                assert samples is not None
                std = samples.std(axis=0, dtype=np.float64)
                written += [*samples, std]
                if between is not None:
                    written += [between, np.sqrt(np.maximum(std**2 - between**2, 0))]
            for matrix, values in zip([means, *layers], written, strict=True):
                if isinstance(matrix, h5py.Dataset):
                    write_rows(matrix, rows, values, threads)
                else:
                    matrix[rows] = values
            n_written += len(mean)
            check()
    if n_written != len(means):
        raise ValueError(f"{file}: {n_written} of {len(means)} rows were predicted")


def _without_values(
    barcodes: Sequence[str], genes: Sequence[str], coords: np.ndarray, info: PredictionInfo
) -> AnnData:
    import anndata

    provenance = info["provenance"]
    if not {"slide", "target"} <= provenance.keys():
        raise ValueError("provenance must name slide and target")
    adata = anndata.AnnData(
        obs=pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    if (expected := info.get("expected_pearson")) is not None:
        adata.var["expected_pearson"] = np.asarray(expected, dtype=np.float64)
    for column, names in info.get("gene_names", _NOTHING).items():
        adata.var[column] = np.asarray(names, dtype=object)
    if observed := info.get("observed"):
        for table, places in zip((adata.obs, adata.var), observed, strict=True):
            table[OBSERVED] = np.isin(np.arange(len(table)), places)
    for name, dtype in info.get("late_obs", _NOTHING).items():
        adata.obs[name] = np.zeros(len(barcodes), dtype)
    if quantiles := info.get("quantiles"):
        adata.varm[QUANTILES] = np.asarray(quantiles[0], dtype=np.float32)
    if picture := info.get("picture"):
        adata.uns["spatial"] = {str(provenance["slide"]): picture.library(adata.obsm["spatial"])}
    adata.uns[KEY] = {"format": FORMAT, "provenance": _provenance_text(info)}
    if quantiles:
        adata.uns[KEY][LEVELS] = np.asarray(quantiles[1], dtype=np.float64)
    return adata


def _provenance_text(info: PredictionInfo, late: Mapping[str, Any] = _NOTHING) -> str:
    return json.dumps({"format": FORMAT, **info["provenance"], **late}, sort_keys=True)


def _matrix(file: h5py.File, name: str, shape: tuple[int, int]) -> h5py.Dataset:
    """Make a matrix as anndata stores them (encoding "array"), compressed and checksummed."""
    chunks = (min(shape[0], chunk_rows(shape[1])), shape[1])
    data = file.create_dataset(
        name,
        shape,
        np.float32,
        chunks=chunks,
        compression="gzip",
        compression_opts=1,
        shuffle=True,
        fletcher32=True,
        rdcc_nbytes=2 * _CHUNK_BYTES,
    )
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return data


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Read the provenance of a prediction and nothing else.

    Raises:
        BadInput: not such a file.
    """
    with open_h5(path) as file:
        return stored_provenance(file, path)


def warnings_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings that a prediction's image and spots met, which are stored with it."""
    stored = provenance.get(WARNINGS)
    return tuple(map(str, stored)) if isinstance(stored, list) else ()


def stored_provenance(file: h5py.File, path: str | Path) -> dict[str, Any]:
    """Return the provenance of an open prediction.

    Raises:
        BadInput: not such a file.
    """
    place = f"uns/{KEY}/provenance"
    data, text = file.get(place), None
    if isinstance(data, h5py.Dataset) and data.shape == ():
        with as_bad_input(path, place, "text"):
            text = data.asstr()[()]
    return parse_provenance(text, path, ())


def n_spots_of(path: str | Path) -> int:
    """Return the number of spots of a prediction without reading its values.

    Raises:
        BadInput: not a prediction.
    """
    with open_h5(path) as file:
        return len(dataset(file, ["X"]))


def read_prediction(path: str | Path) -> Prediction:
    """Read a prediction that :func:`write_prediction_blocks` wrote.

    Raises:
        BadInput: not such a file, or values that are not finite.
    """
    return prediction_of(read_h5ad(path), path)


def prediction_of(adata: AnnData, path: str | Path) -> Prediction:
    """Return a prediction that is an AnnData, validated as :func:`read_prediction` does.

    Args:
        adata: an output of ``sample``.
        path: the file it comes from, for messages.

    Raises:
        BadInput: as :func:`read_prediction`.
    """
    stored = adata.uns.get(KEY)
    text = stored.get("provenance") if isinstance(stored, Mapping) else None
    provenance = parse_provenance(text, path, adata.uns)
    barcodes, genes = list(adata.obs_names), list(adata.var_names)
    check_unique(barcodes, path, "obs_names")
    check_unique(genes, path, "var_names")
    mean = _numbers(adata.X, path, "X", np.float32)
    if not np.isfinite(mean).all():
        raise BadInput(path, "X", unquoted("values not finite"), "finite predictions")
    coords = spatial(adata, path)
    if coords is None:
        raise BadInput(path, "obsm", list(adata.obsm), "'spatial'")
    names = [name for name in adata.layers if name.startswith("sample_")]
    expected_names = [f"sample_{i}" for i in range(len(names))]
    if set(names) != set(expected_names):
        raise BadInput(path, "layers", names, f"{len(names)} samples from sample_0 on")
    samples = [
        _numbers(adata.layers[name], path, f"layers/{name}", np.float32) for name in expected_names
    ]
    expected = None
    if "expected_pearson" in adata.var:
        column = adata.var["expected_pearson"]
        expected = _numbers(column, path, "var/expected_pearson", np.float64)
    observed = None
    if OBSERVED in adata.obs and OBSERVED in adata.var:
        observed = _flags(adata.obs, "obs", path), _flags(adata.var, "var", path)
    stacked = np.stack(samples) if samples else None
    return Prediction(mean, barcodes, genes, coords, stacked, provenance, expected, observed)


def _numbers(values: Any, path: str | Path, field: str, dtype: type) -> np.ndarray:
    with as_bad_input(path, field, "numbers"):
        return np.asarray(values, dtype=dtype)


def _flags(table: pd.DataFrame, name: str, path: str | Path) -> np.ndarray:
    flags = table[OBSERVED].to_numpy()
    if flags.dtype != bool:
        raise BadInput(path, f"{name}[{OBSERVED!r}]", str(flags.dtype), "true or false")
    return flags
