"""Names and places of the spots of an .h5ad, read without its counts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from stflow_graph.io.coords import check_coords
from stflow_graph.io.expression import read_h5ad, spatial
from stflow_graph.io.hdf5 import open_h5, read_strings


def read_places(path: str | Path) -> tuple[list[str], np.ndarray] | None:
    """Read the barcodes and ``obsm["spatial"]`` of an .h5ad.

    Args:
        path: the file.

    Returns:
        N names and ``[N, 2]`` float64 centres in level-0 pixels (x, y); None if there are none.

    Raises:
        BadInput: not an .h5ad, or places that do not fit its spots.
    """
    with open_h5(path) as file:
        obs = file.get("obs")
        index = obs.attrs.get("_index") if isinstance(obs, h5py.Group) else None
        names = None if index is None else obs.get(str(index))
        places = file.get("obsm/spatial")
        if isinstance(names, h5py.Dataset) and isinstance(places, h5py.Dataset):
            barcodes = read_strings(names)
            coords = check_coords(places[()], path, "obsm['spatial']", len(barcodes))
            return barcodes, coords
    # another encoding, of older or newer versions of anndata
    adata = read_h5ad(path)
    found = spatial(adata, path)
    return None if found is None else (list(adata.obs_names), found)
