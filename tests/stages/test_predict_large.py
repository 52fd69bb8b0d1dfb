"""A whole slide of 1.6 billion pixels is predicted in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest
from foreign import halved, tissue_like
from imaged import PATCH_PX, write_imaged

TESTS = Path(__file__).parents[1]
SIDE, TILE, LEVELS = 40_960, 512, (1, 4, 16)
CODE = f"""
import resource
from imaged import PATCH_PX
from toy import toy_encoder
from stflow_graph.preparation.slide_places import slides_of
from stflow_graph.stages.predict import PredictSettings, predict

settings = PredictSettings(patch_px={PATCH_PX}, pitch_um=200.0)
(done,) = predict(slides_of("large.svs"), "run", "out", toy_encoder(), settings)
print(done.n_spots, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def tiles(step: int, tissue: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tiles of a level: a disc of tissue on glass."""
    for _ in range({4: 2, 16: 4}.get(step, 0)):
        tissue = halved(tissue)
    glass = np.full((TILE, TILE, 3), 243, np.uint8)
    tissue = np.tile(tissue, (-(-TILE // len(tissue)), -(-TILE // len(tissue)), 1))[:TILE, :TILE]
    n = SIDE // step // TILE
    for row in range(n):
        for column in range(n):
            centre = (np.array([column, row]) + 0.5) / n - 0.5
            yield tissue if np.hypot(*centre) < 0.3 else glass


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slide_of_40_960_pixels_is_predicted_in_two_gigabytes(tmp_path, capsys):
    import tifffile

    write_imaged(tmp_path)
    texture = np.array([190, 110, 170], np.uint8) + tissue_like(TILE, TILE) // 8
    with tifffile.TiffWriter(tmp_path / "large.svs", bigtiff=True) as tiff:
        for step in LEVELS:
            side = SIDE // step
            tiff.write(
                tiles(step, texture),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                metadata=None,
                description=f"Aperio Image Library v11.2.1 \r\n{SIDE}x{SIDE}|MPP = 0.5",
            )
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    n_spots, memory = map(int, done.stdout.split())
    area = np.pi * (0.3 * SIDE * 0.5) ** 2  # µm²
    assert n_spots == pytest.approx(area / (200 * 200 * np.sqrt(3) / 2), rel=0.06)
    assert memory < 2 * 2**30
    names = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert names == ["large.h5ad", "large.png", "report.html"]
    assert anndata.read_h5ad(tmp_path / "out/large.h5ad").n_obs == n_spots
    with capsys.disabled():
        print(f"\n{SIDE} x {SIDE} px: {n_spots:,} spots in {memory / 2**30:.2f} GiB")
