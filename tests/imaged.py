"""Slides with images, and a model trained on them with the toy's encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from artefacts import read_embeddings
from foreign import tissue_on_glass, write_svs
from toy import GENES, toy_encoder

from stflow_graph.config import load_config
from stflow_graph.data.genes import write_gene_list
from stflow_graph.data.splits import embedding_path
from stflow_graph.io.expression import write_expression
from stflow_graph.preparation.image_embedding import PatchOptions
from stflow_graph.preparation.slide_places import GridOptions, slides_of
from stflow_graph.stages.embed import embed_from_image
from stflow_graph.stages.train import train

PATCH_UM, PATCH_PX, PITCH_UM = 20.0, 16, 20.0
PATCHES = PatchOptions(GridOptions(PITCH_UM, "hexagonal"), PATCH_UM, PATCH_PX)


def write_image(path: Path, seed: int) -> Path:
    """Write a slide of 0.5 µm a pixel, tissue of its own on glass."""
    pixels = tissue_on_glass().astype(np.int64)
    shift = np.random.default_rng(seed).integers(-8, 9, (1, 1, 3))
    tissue = pixels.max(axis=2, keepdims=True) - pixels.min(axis=2, keepdims=True) > 40
    return write_svs(path, np.clip(pixels + tissue * shift, 0, 255).astype(np.uint8), "0.5")


def write_imaged(folder: Path) -> None:
    """Write images/S0.svs .. S3.svs, and a run trained on all slides but S3."""
    (folder / "images").mkdir()
    root, embeddings = folder / "imaged", folder / "embeddings"
    for seed in range(4):
        image = write_image(folder / f"images/S{seed}.svs", seed)
        if seed == 3:
            continue
        target = embedding_path(embeddings, "imaged", "toy", f"S{seed}")
        embed_from_image(slides_of(image)[0], target, toy_encoder(), PATCHES)
        source = read_embeddings(target)
        rng, x = np.random.default_rng(seed), source.x - source.x.mean(axis=0)
        rate = np.exp(1 + x / x.std() @ np.random.default_rng(9).normal(size=(6, len(GENES))) / 4)
        counts = sp.csr_matrix(rng.poisson(np.minimum(rate, 50)))
        path = root / f"adata/S{seed}.h5ad"
        write_expression(path, counts, source.barcodes, GENES, source.coords, um_per_px=0.5)
    write_gene_list(root / "var_50genes.json", GENES)
    settings = {
        "data.source_dataroot": str(root),
        "data.embed_dataroot": str(embeddings),
        "data.encoder": "toy",
        "denoiser.hidden_channels": 16,
        "graph.n_neighbors": 4,
        "train.epochs": 2,
        "train.regions_per_slide": 1,
        "train.folds": "all",
        "train.members": 2,
    }
    train(load_config(None, settings), folder / "run")
