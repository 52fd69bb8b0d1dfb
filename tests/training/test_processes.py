from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import CPU, configured, linear_slide, scaling_of

from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.inference.inputs import SlideInputs, slide_data, slide_inputs
from stflow_graph.training.processes import fit_processes

GENES, RANK = 8, 3
DIRECTIONS = np.linalg.qr(np.random.default_rng(0).normal(size=(GENES, RANK)))[0]
ALL = np.ones((4, GENES), bool)


def slide_of(name: str) -> SlideInputs:
    config, slide = configured("field"), linear_slide(name, 196)
    return slide_inputs(slide, slide_data(slide, config, scaling_of([slide], config)), CPU)


SLIDES = [slide_of(name) for name in "ABCD"]


def residuals_of(
    slide: SlideInputs, smooth: tuple[float, ...], own: float, seed: int
) -> np.ndarray:
    """Factors of unit variance with some smooth share; genes with a deviation of their own."""
    keys = spot_keys(slide.slide.name, slide.slide.barcodes)
    assert slide.graph is not None
    noise = SlideNoise(keys, slide.slide.name, slide.graph.average, seed)
    variances = torch.tensor([[share, 0.0, 0.0] for share in smooth])
    factors = (
        noise.smooth(variances, 0) + noise.spots(RANK, 0, first=50) * (1 - variances[:, 0]).sqrt()
    )
    rest = own * noise.spots(GENES, 0, first=90)
    return (factors.numpy() @ DIRECTIONS.T + rest.numpy()).astype(np.float64)


def fitted(measured: np.ndarray = ALL, smooth=(0.8, 0.4, 0.02), own=0.3) -> dict[str, np.ndarray]:
    parts = [residuals_of(slide, smooth, own, seed) for seed, slide in enumerate(SLIDES)]
    parts = [part * genes for part, genes in zip(parts, measured, strict=True)]
    return fit_processes(SLIDES, parts, measured, DIRECTIONS)


def test_smooth_shares_and_noise_of_each_direction():
    found = fitted()
    smooth = found["process_smooth"].sum(1)
    assert smooth[0] == pytest.approx(0.8, rel=0.5)
    assert smooth[0] > 1.4 * smooth[1] > 3 * smooth[2]
    assert found["process_noise"][:RANK] == pytest.approx([0.3, 0.7, 1.07], rel=0.4)
    assert smooth[-1] < 0.1
    assert found["process_noise"][-1] == pytest.approx(1, rel=0.15)
    left = 1 - np.square(DIRECTIONS).sum(1)
    np.testing.assert_allclose(found["own_scale"], 0.3 * np.sqrt(left), rtol=0.25)


def test_genes_that_slides_lack_are_taken_from_the_others():
    measured = ALL.copy()
    measured[0, :4] = False
    measured[1, 4:6] = False
    found, whole = fitted(measured), fitted()
    for name, values in found.items():
        assert np.isfinite(values).all(), name
    np.testing.assert_allclose(found["own_scale"], whole["own_scale"], rtol=0.5)
    smooth = found["process_smooth"].sum(1)
    assert smooth[0] > smooth[1] > smooth[2]


def test_without_residuals_there_are_processes():
    parts = [np.zeros((len(slide.slide), GENES)) for slide in SLIDES]
    found = fit_processes(SLIDES, parts, ALL, DIRECTIONS)
    assert all((values > 0).all() for values in found.values())
