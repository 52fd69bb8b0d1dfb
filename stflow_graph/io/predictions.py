"""Predictions of one slide as an .h5ad that scanpy and squidpy open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stflow_graph.errors import BadInput, plain
from stflow_graph.io.expression import read_h5ad, spatial, write_h5ad
from stflow_graph.io.hdf5 import check_unique

FORMAT = "stflow_graph.predictions/1"
KEY = "stflow_graph"


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
        expected_pearson: ``[G]`` what the model scored on held-out training slides, or None.
    """

    mean: np.ndarray
    barcodes: list[str]
    genes: list[str]
    coords: np.ndarray
    samples: np.ndarray | None
    provenance: dict[str, Any]
    expected_pearson: np.ndarray | None = None

    @property
    def slide(self) -> str:
        """The slide's name."""
        return str(self.provenance["slide"])


def write_prediction(
    path: str | Path,
    mean: np.ndarray,
    barcodes: Sequence[str],
    genes: Sequence[str],
    coords: np.ndarray,
    *,
    provenance: Mapping[str, Any],
    samples: np.ndarray | None = None,
    expected_pearson: np.ndarray | None = None,
) -> None:
    """Write a prediction atomically.

    Args:
        path: the final path.
        mean: ``[N, G]`` mean prediction in log1p units, stored as ``X``.
        barcodes: N names.
        genes: G names.
        coords: ``[N, 2]`` level-0 pixels (x, y).
        provenance: JSON-like values; must name ``slide`` and ``target``. Stored as JSON text in
            ``uns["stflow_graph"]`` so that lists and None survive.
        samples: ``[S, N, G]``, stored as ``layers["sample_0"]`` ... and their standard deviation
            as ``layers["std"]``.
        expected_pearson: ``[G]`` what the model scored on held-out training slides, stored as
            ``var["expected_pearson"]``.

    Raises:
        ValueError: a value is not finite, or the provenance lacks a name.
    """
    import anndata

    if not np.isfinite(mean).all():
        raise ValueError(f"{path}: a prediction is not finite")
    if not {"slide", "target"} <= provenance.keys():
        raise ValueError("provenance must name slide and target")
    adata = anndata.AnnData(
        X=np.asarray(mean, dtype=np.float32),
        obs=pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )
    adata.obsm["spatial"] = np.asarray(coords, dtype=np.float64)
    if expected_pearson is not None:
        adata.var["expected_pearson"] = np.asarray(expected_pearson, dtype=np.float64)
    if samples is not None:
        for i, sample in enumerate(samples):
            adata.layers[f"sample_{i}"] = np.asarray(sample, dtype=np.float32)
        adata.layers["std"] = np.asarray(samples, dtype=np.float64).std(axis=0).astype(np.float32)
    text = json.dumps({"format": FORMAT, **provenance}, sort_keys=True)
    adata.uns[KEY] = {"format": FORMAT, "provenance": text}
    write_h5ad(path, adata)


def read_prediction(path: str | Path) -> Prediction:
    """Read a prediction that :func:`write_prediction` wrote.

    Raises:
        BadInput: not such a file, or values that are not finite.
    """
    adata = read_h5ad(path)
    try:
        provenance = json.loads(adata.uns[KEY]["provenance"])
        fits = {"slide", "target"} <= provenance.keys()
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        keys = plain("keys " + ", ".join(map(repr, adata.uns)) if adata.uns else "nothing")
        fix = "give a file that `stflow-graph sample` wrote"
        raise BadInput(path, "uns", keys, f"{KEY!r} with its provenance", fix)
    barcodes, genes = list(adata.obs_names), list(adata.var_names)
    check_unique(barcodes, path, "obs_names")
    check_unique(genes, path, "var_names")
    mean = np.asarray(adata.X, dtype=np.float32)
    if not np.isfinite(mean).all():
        raise BadInput(path, "X", plain("values not finite"), "finite predictions")
    coords = spatial(adata, path)
    if coords is None:
        raise BadInput(path, "obsm", list(adata.obsm), "'spatial'")
    n = sum(name.startswith("sample_") for name in adata.layers)
    samples = (
        np.stack([np.asarray(adata.layers[f"sample_{i}"], np.float32) for i in range(n)])
        if n
        else None
    )
    expected = None
    if "expected_pearson" in adata.var:
        expected = np.asarray(adata.var["expected_pearson"], dtype=np.float64)
    return Prediction(mean, barcodes, genes, coords, samples, provenance, expected)
