"""A prediction beside the truth, drawn by squidpy on the H&E that the prediction carries.

usage: python benchmarks/squidpy_picture.py PREDICTION.h5ad COUNTS.h5ad OUT.png [--gene GENE]
(the prediction made by `stflow-graph sample RUN EMBEDDINGS.h5 --image IMAGE --out FOLDER`)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import squidpy as sq
from anndata import AnnData
from PIL import Image

from stflow_graph.io.expression import read_expression
from stflow_graph.io.h5ad import read_h5ad

_MARGIN = 250  # level-0 px around the spots


def main() -> None:
    """Draw the gene named, or the one that the model was surest of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prediction", type=Path, help="what `sample --image` wrote")
    parser.add_argument("truth", type=Path, help="the slide's counts, .h5ad")
    parser.add_argument("out", type=Path, help="the picture, .png")
    parser.add_argument("--gene", help="default: the highest expected_pearson")
    options = parser.parse_args()
    predicted = read_h5ad(options.prediction)
    gene = options.gene or predicted.var["expected_pearson"].idxmax()
    measured = _measured(predicted, options.truth, gene)
    pearson = np.corrcoef(predicted[:, gene].X.ravel(), measured.X.ravel())[0, 1]
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.3), dpi=100, layout="constrained")
    name = next(iter(predicted.uns["spatial"]))
    titles = (name, f"{gene}, predicted (PCC {pearson:.2f})", f"{gene}, measured, log1p")
    for axis, (adata, color), title in zip(
        axes, ((predicted, None), (predicted, gene), (measured, gene)), titles, strict=True
    ):
        _draw(adata, color, title, axis, figure)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    # 256 colours suffice and make a file of a third of the size
    Image.fromarray(pixels).quantize(256).save(options.out, optimize=True)


def _measured(predicted: AnnData, file: Path, gene: str) -> AnnData:
    """Return log1p counts of the predicted spots, with the prediction's image."""
    truth = read_expression(file, [gene])
    place = {barcode: i for i, barcode in enumerate(truth.barcodes)}
    rows = [place[barcode] for barcode in predicted.obs_names]
    measured = predicted[:, [gene]].copy()
    measured.X = np.log1p(truth.counts[rows].toarray())
    return measured


def _draw(
    adata: AnnData, color: str | None, title: str, axis: plt.Axes, figure: plt.Figure
) -> None:
    low, high = adata.obsm["spatial"].min(0) - _MARGIN, adata.obsm["spatial"].max(0) + _MARGIN
    sq.pl.spatial_scatter(
        adata,
        color=color,
        size=1.3,
        alpha=0.9 if color else 0.0,
        img_alpha=1.0,
        cmap="viridis" if color else None,
        library_id=next(iter(adata.uns["spatial"])),
        crop_coord=(*low, *high),
        title=title,
        frameon=False,
        ax=axis,
        fig=figure,
    )


if __name__ == "__main__":
    main()
