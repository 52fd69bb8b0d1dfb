"""A gene of a slide: measured, predicted, predicted with a tenth of the spots measured, its error.

usage: python benchmarks/evidence_picture.py NOTHING.h5ad OBSERVED.h5ad COUNTS.h5ad OUT.png
           [--gene GENE]
(predictions by `stflow-graph sample RUN EMBEDDINGS.h5`, the second with `--observed`)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import numpy as np
from hero_picture import QUANTILES, draw_spots
from matplotlib.collections import PatchCollection
from scipy import sparse


def column(adata: anndata.AnnData, gene: str) -> np.ndarray:
    """Return the values ``[N]`` of a gene."""
    values = adata[:, gene].X
    return np.asarray(values.toarray() if sparse.issparse(values) else values).ravel()


def ring(spots: PatchCollection, chosen: np.ndarray) -> None:
    """Draw a line around some of the spots."""
    spots.set_edgecolor("black")
    spots.set_linewidth(np.where(chosen, 1.6, 0.0))


def main() -> None:
    """Draw the named gene, or the one that varies most on the slide."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nothing", type=Path, help="prediction with nothing observed")
    parser.add_argument("observed", type=Path, help="prediction with some spots observed")
    parser.add_argument("truth", type=Path, help="counts of the slide")
    parser.add_argument("out", type=Path, help="the picture, .png")
    parser.add_argument("--gene", help="default: the largest measured variance")
    options = parser.parse_args()
    before, after = (anndata.read_h5ad(path) for path in (options.nothing, options.observed))
    truth = anndata.read_h5ad(options.truth)[before.obs_names]
    shared = [gene for gene in before.var_names if gene in truth.var_names]
    variances = [np.log1p(column(truth, gene)).var() for gene in shared]
    gene = options.gene or shared[int(np.argmax(variances))]
    measured = np.log1p(column(truth, gene))
    predictions = [column(each, gene) for each in (before, after)]
    seen = after.obs["observed"].to_numpy()
    scores = [np.corrcoef(each[~seen], measured[~seen])[0, 1] for each in predictions]
    together = np.concatenate([measured, *predictions])
    limits = tuple(np.quantile(together, QUANTILES))
    errors = [each - measured for each in predictions]
    worst = float(np.quantile(np.abs(errors[1][~seen]), QUANTILES[1]))
    panels = (
        (f"{gene}, measured", measured, "viridis", limits, "log1p(counts)"),
        (f"nothing measured, PCC {scores[0]:.2f}", predictions[0], "viridis", limits, "expected"),
        (f"a tenth measured, PCC {scores[1]:.2f}", predictions[1], "viridis", limits, "expected"),
        ("its error", errors[1], "RdBu_r", (-worst, worst), "expected less measured log1p"),
    )
    plt.rcParams.update({"font.size": 15, "figure.constrained_layout.wspace": 0.06})
    figure, axes = plt.subplots(
        2, 4, figsize=(14, 4), dpi=100, layout="constrained", height_ratios=(18, 1)
    )
    for number, ((axis, bar), panel) in enumerate(zip(axes.T, panels, strict=True)):
        title, values, colours, ends, label = panel
        axis.set_title(title, fontsize=15)
        spots = draw_spots(before, values, colours, axis, ends)
        if number >= 2:
            ring(spots, seen)
        figure.colorbar(spots, cax=bar, orientation="horizontal", label=label)
        bar.spines["outline"].set_visible(False)
        bar.xaxis.get_major_locator().set_params(nbins=5)
    figure.savefig(options.out)
    off = [float(np.sqrt(np.square(error[~seen]).mean())) for error in errors]
    print(
        f"{gene}, {int((~seen).sum())} spots that were not measured: PCC {scores[0]:.3f} and "
        f"{scores[1]:.3f}, root mean square error {off[0]:.3f} and {off[1]:.3f}"
    )


if __name__ == "__main__":
    main()
