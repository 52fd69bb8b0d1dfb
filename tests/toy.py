"""A tiny cohort on disk, made from a linear model, for the stages that need embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stflow_graph.data.splits import embedding_path
from stflow_graph.io.embeddings import read_embeddings, write_embeddings
from stflow_graph.io.expression import write_expression

GENES = [f"G{i}" for i in range(6)]
CHANNELS = 10
SLIDES = ("A", "B", "C", "D")


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Where the tiny cohort's files are."""

    root: Path
    embeddings: Path
    name: str = "cohort"
    slides: tuple[str, ...] = SLIDES

    def embedding(self, slide: str) -> Path:
        return embedding_path(self.embeddings, self.name, "toy", slide)

    def expression(self, slide: str) -> Path:
        return self.root / "adata" / f"{slide}.h5ad"

    @property
    def settings(self) -> dict:
        """A configuration that trains in a second."""
        return {
            "data.source_dataroot": str(self.root),
            "data.embed_dataroot": str(self.embeddings),
            "data.encoder": "toy",
            "denoiser.hidden_channels": 16,
            "denoiser.n_layers": 2,
            "graph.n_neighbors": 4,
            "train.epochs": 3,
            "train.regions_per_slide": 2,
            "train.folds": [0],
            "train.members": 1,
            "train.flow_steps": 20,
        }


def write_slide(
    embedding: Path, expression: Path | None, n: int, seed: int, channels: int = CHANNELS
) -> None:
    """Write a slide whose counts follow a log-linear model of its embeddings."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    i, j = (g.ravel()[:n] for g in np.meshgrid(np.arange(side), np.arange(side)))
    # jitter: on an exact lattice the published model depends on the order of spots
    coords = np.stack([100 * i + 50 * (j % 2), 87 * j], 1) + rng.integers(-9, 10, (n, 2))
    x = rng.normal(size=(n, channels)).astype(np.float32)
    barcodes = [f"{a}x{b}" for a, b in zip(i, j, strict=True)]
    attrs = {"encoder": "toy", "um_per_px": 1.0, "convention": "centre"}
    with write_embeddings(embedding, barcodes, coords, channels, attrs) as writer:
        writer.append(x)
    if expression is None:
        return
    weights = np.random.default_rng(0).normal(size=(channels, len(GENES))) / 3
    counts = rng.poisson(np.exp(1 + x @ weights))
    write_expression(expression, sp.csr_matrix(counts), barcodes, GENES, coords, um_per_px=1.0)


def add_encoder(cohort: Cohort, name: str, noise: float) -> None:
    """Write embeddings of another encoder: the toy's with noise."""
    for slide in cohort.slides:
        embeddings = read_embeddings(cohort.embedding(slide))
        x = embeddings.x + noise * np.random.default_rng(0).normal(size=embeddings.x.shape)
        path = embedding_path(cohort.embeddings, cohort.name, name, slide)
        with write_embeddings(path, embeddings.barcodes, embeddings.coords, CHANNELS, {}) as writer:
            writer.append(x.astype(np.float32))
