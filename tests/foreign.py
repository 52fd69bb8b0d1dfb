"""Feature files as TRIDENT and CLAM write them: keys, shapes, types and attributes of theirs."""

import subprocess
import sys
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
    """Return TRIDENT's attributes of ``coords`` for 256 px patches at 20x of a 40x slide."""
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
            chunks, limit = (1, *shape[1:]), (None, *shape[1:])
            data = file.create_dataset(key, data=value, chunks=chunks, maxshape=limit)
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


def tissue_like(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours ``[height, width, 3]``, with detail at many scales as tissue has."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for step in (2, 8, 32, 128):
        shape = (-(-height // step) + 1, -(-width // step) + 1, 3)
        coarse = rng.normal(size=shape).repeat(step, axis=0).repeat(step, axis=1)
        pixels += coarse[:height, :width]
    return np.clip(128 + 30 * pixels, 0, 255).astype(np.uint8)


def tissue_on_glass(width: int = 900, height: int = 700) -> np.ndarray:
    """Glass, and tissue in a rectangle of x 200 to 600, y 100 to 500."""
    pixels = np.full((height, width, 3), 243, np.uint8)
    texture = tissue_like(400, 400) // 8
    pixels[100:500, 200:600] = np.array([190, 110, 170], np.uint8) + texture
    return pixels


def halved(pixels: np.ndarray) -> np.ndarray:
    """The next level of a pyramid: means of 2 x 2 pixels, a last odd row or column left out."""
    height, width = (length // 2 * 2 for length in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def write_svs(path: Path, pixels: np.ndarray, um_per_px: str = "0.4990", steps: int = 2) -> Path:
    """Write a slide as Aperio's scanners do: base, thumbnail, then levels a quarter as wide."""
    import tifffile

    height, width = pixels.shape[:2]
    about = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (240x240)"
    options = {"photometric": "rgb", "compression": "zlib", "metadata": None}
    tile = {**options, "tile": (240, 240)}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, **tile, description=f"{about}|AppMag = 20|MPP = {um_per_px}|Left = 25")
        tiff.write(pixels[::8, ::8], **options, rowsperstrip=16, description=about)
        for _ in range(steps):
            pixels = halved(halved(pixels))
            tiff.write(pixels, **tile, description=about)
    return path


def write_trestle(path: Path, pixels: np.ndarray) -> Path:
    """Write a slide as Trestle's scanners do, a TIFF whose tiles only OpenSlide may place."""
    import tifffile

    options = {"photometric": "rgb", "compression": "zlib", "metadata": None, "tile": (240, 240)}
    about = {"software": "MedScan", "description": "Objective Power=20;OverlapsXY= 0 0 0 0;"}
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 2, 4):
            # they keep micrometres per pixel there
            tiff.write(pixels, **options, **about, resolution=(step / 2, step / 2))
            pixels = halved(pixels)
    return path


def opened_without(package: str, image: Path) -> str:
    """Return the size of an image, or why it cannot be opened, where a package is not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from stflow_graph.errors import MissingDependency\n"
        "from stflow_graph.images.open import open_image\n"
        "try:\n"
        f"    with open_image({str(image)!r}) as image: print(image.size)\n"
        "except MissingDependency as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout
