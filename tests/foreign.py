"""Feature files as TRIDENT and CLAM write them: keys, shapes, types and attributes of theirs."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def grid(n_rows: int = 6, n_columns: int = 7, step: int = 512) -> np.ndarray:
    """Top-left corners ``[N, 2]`` of a grid with one patch left out."""
    y, x = (g.ravel() for g in np.meshgrid(np.arange(n_rows), np.arange(n_columns), indexing="ij"))
    return (np.stack([x, y], axis=1) * step)[1:]


def features(n: int, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def coords_attrs(**changes: object) -> dict[str, object]:
    """What TRIDENT says beside ``coords`` of 256 px patches at 20x, from a 40x slide."""
    attrs: dict[str, object] = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "S1",
        "savetodir": "trident/20x_256px_0px_overlap",
        "level0_width": 20_000,
        "level0_height": 16_000,
    }
    return {key: value for key, value in (attrs | changes).items() if value is not None}


def save_h5(path: Path, assets: dict, attributes: dict | None = None) -> Path:
    """Write as TRIDENT's and CLAM's savers do: a chunk a row, rows without a limit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in assets.items():
            shape = value.shape
            chunks, most = (1, *shape[1:]), (None, *shape[1:])
            data = file.create_dataset(key, data=value, chunks=chunks, maxshape=most)
            data.attrs.update((attributes or {}).get(key, {}))
    return path


def write_trident(
    path: Path,
    coords: np.ndarray,
    x: np.ndarray,
    encoder: str | None = "uni_v1",
    attrs: dict[str, object] | None = None,
) -> Path:
    """Write a feature file of TRIDENT; before 2025-06 it did not name the encoder."""
    about = {"name": path.stem, "savetodir": str(path.parent)}
    if encoder is not None:
        about["encoder"] = encoder
    attributes = {"features": about, "coords": coords_attrs() if attrs is None else attrs}
    return save_h5(path, {"features": x, "coords": coords.astype(np.int64)}, attributes)


def write_clam(
    root: Path, slide: str, coords: np.ndarray, x: np.ndarray, downsample: float = 2.0
) -> Path:
    """Write ``patches/``, ``h5_files/`` and ``pt_files/`` of CLAM; return the .pt file."""
    import torch

    about = {
        "patch_size": 256,
        "patch_level": 1,
        "downsample": (downsample, downsample),
        "downsampled_level_dim": (10_000, 8_000),
        "level_dim": (10_000, 8_000),
        "name": slide,
        "save_path": str(root / "patches"),
    }
    coords = coords.astype(np.int32)
    save_h5(root / "patches" / f"{slide}.h5", {"coords": coords}, {"coords": about})
    save_h5(root / "h5_files" / f"{slide}.h5", {"features": x, "coords": coords})
    tensor = root / "pt_files" / f"{slide}.pt"
    tensor.parent.mkdir(exist_ok=True)
    torch.save(torch.from_numpy(x), tensor)
    return tensor
