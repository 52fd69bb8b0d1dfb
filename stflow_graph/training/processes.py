"""The Gaussian processes by which measured spots of a slide inform the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stflow_graph.flow.field import squared_ranges
from stflow_graph.flow.kriging import Processes, Sites
from stflow_graph.flow.noise import spot_keys
from stflow_graph.inference.inputs import SlideInputs
from stflow_graph.stats.panels import mean_of_measured

_LEAST = 1e-4  # of a variance of residuals
_LEAST_SEEN = 0.1


def fit_processes(
    inputs: Sequence[SlideInputs],
    residuals: Sequence[np.ndarray],
    measured: np.ndarray,
    directions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return what :class:`ExpressionField` keeps of the processes, measured on held-out slides.

    In each direction the residuals are a process; what a gene has beside the directions is one too,
    with parameters that all genes share, in units of its deviation.

    Args:
        inputs: the slides.
        residuals: of each ``[N, G]``, in units of the genes' deviations; 0 of genes that a slide
            does not measure.
        measured: ``[S, G]``.
        directions: ``[G, R]``, orthonormal.
    """
    # factors of a slide that lacks genes are smaller by what these have in a direction
    seen = np.maximum(measured @ np.square(directions), _LEAST_SEEN)
    factors = [
        part @ directions / np.sqrt(share) for part, share in zip(residuals, seen, strict=True)
    ]
    rests = [part - part @ directions @ directions.T for part in residuals]
    of_genes = np.where(measured, np.stack([rest.var(axis=0) for rest in rests]), np.nan)
    own = np.sqrt(np.fmax(mean_of_measured(of_genes), _LEAST))
    of_factors = np.mean([factor.var(axis=0) for factor in factors], axis=0)
    variances = np.maximum(np.append(of_factors, 1.0), _LEAST)
    sites = []
    for slide, factor, rest, genes in zip(inputs, factors, rests, measured, strict=True):
        assert slide.graph is not None
        pos, device = slide.slide.coords, slide.data.pos.device
        ranges = squared_ranges(slide.graph.average, torch.from_numpy(pos).to(device))
        keys = spot_keys(slide.slide.name, slide.slide.barcodes).numpy()
        values = [*factor.T[:, :, None], (rest / own)[:, genes]]
        sites.append(Sites.of(pos, ranges.cpu().numpy(), values, keys))
    processes = Processes.fit(sites, variances)
    return {
        "process_smooth": processes.smooth,
        "process_level": processes.level,
        "process_noise": processes.noise,
        "own_scale": own,
    }
