"""H&E, measured, predicted and uncertainty of one gene on a held-out slide, side by side.

usage: python benchmarks/hero_picture.py PREDICTION.h5ad COUNTS.h5ad OUT.png
           [--gene GENE] [--credit TEXT]
(the prediction made by `stflow-graph sample RUN EMBEDDINGS.h5 --image IMAGE --n-samples 64`)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.collections import PatchCollection
from matplotlib.patches import Ellipse, Rectangle

_MARGIN = 160  # level-0 px around the spots
_SPOT = 0.86  # drawn diameter over the distance of neighbouring spots
QUANTILES = (0.02, 0.98)  # ends of a colour scale, so that single spots do not set it


def main() -> None:
    """Draw the named gene, or the one with the highest expected PCC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prediction", type=Path, help="output of `sample --image --n-samples`")
    parser.add_argument("truth", type=Path, help="counts of the slide, .h5ad with uns['um_per_px']")
    parser.add_argument("out", type=Path, help="the picture, .png")
    parser.add_argument("--gene", help="default: the highest expected_pearson")
    parser.add_argument("--credit", default="", help="source of the image, written below it")
    options = parser.parse_args()
    predicted = anndata.read_h5ad(options.prediction)
    gene = options.gene or predicted.var["expected_pearson"].idxmax()
    truth = anndata.read_h5ad(options.truth)
    measured = np.log1p(truth[predicted.obs_names, gene].X.toarray().ravel())
    mean = np.asarray(predicted[:, gene].X).ravel()
    std = np.asarray(predicted[:, gene].layers["std"]).ravel()
    pearson = np.corrcoef(mean, measured)[0, 1]
    panels = (
        (f"{gene}, measured", measured, "viridis", "log1p(counts)"),
        (f"predicted, PCC {pearson:.2f}", mean, "viridis", "expected log1p(counts)"),
        ("uncertainty", std, "magma", "standard deviation of samples"),
    )
    plt.rcParams.update({"font.size": 15, "figure.constrained_layout.wspace": 0.06})
    figure, axes = plt.subplots(
        2, 4, figsize=(14, 4), dpi=100, layout="constrained", height_ratios=(18, 1)
    )
    slide = _draw_image(predicted, float(truth.uns["um_per_px"]), axes[0, 0])
    axes[0, 0].set_title(f"H&E, held-out slide {slide}", fontsize=17)
    axes[1, 0].axis("off")
    axes[1, 0].text(0, 1, options.credit, va="top", fontsize=12, transform=axes[1, 0].transAxes)
    for (axis, bar), (title, values, colours, label) in zip(axes.T[1:], panels, strict=True):
        axis.set_title(title, fontsize=17)
        spots = draw_spots(predicted, values, colours, axis)
        figure.colorbar(spots, cax=bar, orientation="horizontal", label=label)
        bar.spines["outline"].set_visible(False)
        bar.xaxis.get_major_locator().set_params(nbins=5)
    figure.savefig(options.out)
    print(f"{slide}, {gene}: PCC {pearson:.3f}, {len(mean)} spots")


def _draw_image(predicted: AnnData, um_per_px: float, axis: plt.Axes) -> str:
    """Draw the H&E with a scale bar of 1 mm; return the slide's name."""
    ((slide, stored),) = predicted.uns["spatial"].items()
    image, scale = stored["images"]["hires"], stored["scalefactors"]["tissue_hires_scalef"]
    height, width = image.shape[:2]
    axis.imshow(image, extent=(0, width / scale, height / scale, 0))
    _frame(predicted, axis)
    left, bottom = axis.get_xlim()[0] + _MARGIN, axis.get_ylim()[0] - _MARGIN
    length = 1000 / um_per_px
    axis.add_patch(Rectangle((left, bottom), length, 60, color="black"))
    axis.text(left + length / 2, bottom - 40, "1 mm", ha="center", va="bottom")
    return str(slide)


def draw_spots(
    predicted: AnnData,
    values: np.ndarray,
    colours: str,
    axis: plt.Axes,
    limits: tuple[float, float] | None = None,
) -> PatchCollection:
    """Draw a value of each spot as a disc; the ends of the colours are quantiles if not given."""
    places = predicted.obsm["spatial"]
    squares = ((places[:, None] - places[None]) ** 2).sum(-1).astype(float)
    np.fill_diagonal(squares, np.inf)
    diameter = _SPOT * np.median(np.sqrt(squares.min(1)))
    discs = [Ellipse(place, diameter, diameter) for place in places]
    spots = PatchCollection(discs, cmap=colours, linewidths=0)
    spots.set_array(values)
    spots.set_clim(*(limits or np.quantile(values, QUANTILES)))
    axis.add_collection(spots)
    _frame(predicted, axis)
    return spots


def _frame(predicted: AnnData, axis: plt.Axes) -> None:
    """Show the spots and a margin, y downwards as in the image."""
    places = predicted.obsm["spatial"]
    low, high = places.min(0) - _MARGIN, places.max(0) + _MARGIN
    axis.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")
    axis.axis("off")


if __name__ == "__main__":
    main()
