"""A tiny cohort on disk, made from a linear model, and an encoder that loads no weights."""

import dataclasses
from pathlib import Path
from typing import Self

import anndata
import numpy as np
import scipy.sparse as sp
import torch
from artefacts import read_embeddings
from torch import nn

from stflow_graph.data.genes import write_gene_list
from stflow_graph.data.splits import embedding_path
from stflow_graph.encoders import Encoder, PatchTransform
from stflow_graph.io.embeddings import write_embeddings
from stflow_graph.io.expression import write_expression
from stflow_graph.io.patches import write_patches

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

    @classmethod
    def of(cls, folder: Path) -> Self:
        return cls(folder / "cohort", folder / "embeddings")

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


def write_cohort(folder: Path) -> Cohort:
    """Write four slides of 36 spots; fold i tests slide i."""
    cohort = Cohort.of(folder)
    for seed, slide in enumerate(SLIDES):
        write_slide(cohort.embedding(slide), cohort.expression(slide), 36, seed)
    (cohort.root / "splits").mkdir()
    rows = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in SLIDES]
    for fold, row in enumerate(rows):
        sides = {"test": [row], "train": [r for r in rows if r != row]}
        for side, lines in sides.items():
            text = "\n".join(["sample_id,patches_path,expr_path", *lines]) + "\n"
            (cohort.root / "splits" / f"{side}_{fold}.csv").write_text(text)
    write_gene_list(cohort.root / "var_50genes.json", GENES)
    return cohort


def write_slide(
    embedding: Path,
    expression: Path | None,
    n: int,
    seed: int,
    channels: int = CHANNELS,
    encoder: str = "toy",
) -> None:
    """Write a slide whose counts follow a log-linear model of its embeddings."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    i, j = (g.ravel()[:n] for g in np.meshgrid(np.arange(side), np.arange(side)))
    # jitter: on an exact lattice the published model depends on the order of spots
    coords = np.stack([100 * i + 50 * (j % 2), 87 * j], 1) + rng.integers(-9, 10, (n, 2))
    x = rng.normal(size=(n, channels)).astype(np.float32)
    barcodes = [f"{a}x{b}" for a, b in zip(i, j, strict=True)]
    attrs = {"encoder": encoder, "um_per_px": 1.0, "convention": "centre"}
    with write_embeddings(embedding, barcodes, coords, channels, attrs) as writer:
        writer.append(x)
    if expression is None:
        return
    weights = np.random.default_rng(0).normal(size=(channels, len(GENES))) / 3
    counts = rng.poisson(np.exp(1 + x @ weights))
    write_expression(expression, sp.csr_matrix(counts), barcodes, GENES, coords, um_per_px=1.0)


def keep_genes(cohort: Cohort, slide: str, *genes: str) -> None:
    """Drop all other genes of a slide, as if its panel did not have them."""
    adata = anndata.read_h5ad(cohort.expression(slide))
    adata[:, list(genes)].copy().write_h5ad(cohort.expression(slide))


def toy_encoder(name: str = "toy", sha: str = "0" * 64) -> Encoder:
    """Mean and spread of a patch's colours, easy to check by hand."""
    transform = PatchTransform(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Encoder(
        name,
        nn.Identity(),
        6,
        transform,
        sha,
        lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1),
    )


def write_images(path: Path, n: int = 7, seed: int = 0) -> np.ndarray:
    """Write a patch file of random images; return them."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    coords = np.arange(2 * n).reshape(n, 2)
    barcodes = [f"b{i}" for i in range(n)]
    with write_patches(path, barcodes, coords, size=8, size_level0=16.0, um_per_px=0.5) as writer:
        writer.append(images)
    return images


def add_encoder(cohort: Cohort, name: str, noise: float) -> None:
    """Write embeddings of another encoder: the toy's with noise."""
    for slide in cohort.slides:
        embeddings = read_embeddings(cohort.embedding(slide))
        x = embeddings.x + noise * np.random.default_rng(0).normal(size=embeddings.x.shape)
        path = embedding_path(cohort.embeddings, cohort.name, name, slide)
        with write_embeddings(path, embeddings.barcodes, embeddings.coords, CHANNELS, {}) as writer:
            writer.append(x.astype(np.float32))
