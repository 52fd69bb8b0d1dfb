"""Predictions of the tiny cohort: the truth and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from artefacts import write_prediction
from toy import GENES, SLIDES, Cohort

from stflow_graph.data.load import load_slide


@dataclasses.dataclass
class Predicted:
    """A prediction of a slide of the cohort, which tests change before it is written."""

    mean: np.ndarray
    barcodes: list[str]
    genes: list[str]
    coords: np.ndarray
    provenance: dict[str, Any]
    samples: np.ndarray | None = None

    def write(self, path: Path) -> Path:
        arrays = self.mean, self.barcodes, self.genes, self.coords
        write_prediction(path, *arrays, provenance=self.provenance, samples=self.samples)
        return path

    def reordered(self, spots: Sequence[int], genes: Sequence[int]) -> Predicted:
        return dataclasses.replace(
            self,
            mean=self.mean[np.ix_(spots, genes)],
            barcodes=[self.barcodes[i] for i in spots],
            genes=[self.genes[i] for i in genes],
            coords=self.coords[spots],
        )


def predicted(
    cohort: Cohort,
    slide: str = "A",
    *,
    genes: Sequence[str] = GENES,
    noise: float = 0.5,
    seed: int = 0,
    n_samples: int | None = None,
    target: str = "log1p",
    **provenance: Any,
) -> Predicted:
    """Return the truth of a slide and noise, with the provenance of a model of its fold."""
    truth = load_slide(cohort.embedding(slide), cohort.expression(slide), genes, target=target)
    rng = np.random.default_rng(seed)
    samples = truth.y + noise * rng.normal(size=(n_samples or 1, *truth.y.shape))
    provenance = {
        "slide": slide,
        "dataset": cohort.name,
        "target": target,
        "encoder": "toy",
        "denoiser": "graph",
        "fold": SLIDES.index(slide),
        "train_slides": sorted(set(SLIDES) - {slide}),
        "source_dataroot": str(cohort.root),
        "embed_dataroot": str(cohort.embeddings),
        "gene_list": "var_50genes.json",
        **provenance,
    }
    mean = samples.mean(0).astype(np.float32)
    kept = samples.astype(np.float32) if n_samples else None
    return Predicted(mean, truth.barcodes, list(genes), truth.coords, provenance, kept)
