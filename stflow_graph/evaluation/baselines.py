"""Baselines for comparison with models, fitted on training slides only.

A baseline is a function that fits on training slides and returns a predictor, a function of a
slide's embeddings and positions. To add one, write a line in :func:`fit_baselines`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from stflow_graph.data.barcodes import rows_of
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.data.validation import split_validation
from stflow_graph.io.patches import open_patches
from stflow_graph.stats.metrics import neighbour_mean
from stflow_graph.stats.panels import genes_by_slides, mean_of_measured, measured_genes
from stflow_graph.stats.ridge import ALPHAS, HeldOutPart, RidgePath, held_out_scores

Predictor = Callable[[Slide], np.ndarray]

GENE_MEAN, RIDGE, SMOOTHED_RIDGE = "gene mean", "ridge", "smoothed ridge"
TUNED_RIDGE, CONTEXT_RIDGE = "tuned ridge", "context ridge"
FOREST, SIMPLE_GNN = "random forest", "simple GNN"
DARKNESS = "darkness"
SLOW = (FOREST, SIMPLE_GNN)  # a minute; the others take seconds
NAMES = (GENE_MEAN, DARKNESS, RIDGE, SMOOTHED_RIDGE, TUNED_RIDGE, CONTEXT_RIDGE, *SLOW)
_BATCH = 64
_SMOOTHINGS = (0, 6, 18)
_CONTEXT_HOPS = (1, 4, 16)
_MIN_SPOTS = 5  # of one or two slides, to hold out parts of them


def fit_baselines(
    train: Sequence[Slide], *, slow: bool = False, seed: int = 0
) -> dict[str, Predictor]:
    """Fit every trained baseline; predictors return ``[N, G]`` float64, log1p units.

    Where slides lack genes, each gene is fitted on the slides that measure it; the simple GNN masks
    the others in its loss.

    Args:
        train: training slides with ``y`` of the same genes, NaN for those that a slide lacks.
        slow: whether to include those of ``SLOW``.
        seed: of the randomised PCA, the forest and the GNN.
    """
    ridge = by_panel(functools.partial(fit_ridge, seed=seed), train)
    tuned = functools.partial(fit_tuned_ridge, seed=seed)
    fitted = {
        GENE_MEAN: fit_gene_mean(train),
        RIDGE: ridge,
        SMOOTHED_RIDGE: smoothed(ridge),
        TUNED_RIDGE: by_panel(tuned, train),
        CONTEXT_RIDGE: by_panel(functools.partial(tuned, hops=_CONTEXT_HOPS), train),
    }
    if slow:
        from stflow_graph.evaluation.gnn_baseline import fit_simple_gnn

        fitted[FOREST] = by_panel(functools.partial(fit_forest, seed=seed), train)
        fitted[SIMPLE_GNN] = fit_simple_gnn(train, seed=seed)
    return fitted


def by_panel(fit: Callable[[Sequence[Slide]], Predictor], train: Sequence[Slide]) -> Predictor:
    """Fit a baseline to each group of genes, on the slides that measure them.

    Args:
        fit: fits a baseline to slides that measure all their genes.
        train: training slides with ``y``.
    """
    truth = [slide.truth for slide in train]
    if all(measured_genes(y).all() for y in truth):
        return fit(train)
    groups = []
    for numbers, genes in genes_by_slides(truth):
        slides = [dataclasses.replace(train[i], y=truth[i][:, genes]) for i in numbers]
        groups.append((genes, fit(slides)))

    def predict(slide: Slide) -> np.ndarray:
        values = np.zeros((len(slide), truth[0].shape[1]))
        for genes, predictor in groups:
            values[:, genes] = predictor(slide)
        return values

    return predict


def fit_gene_mean(train: Sequence[Slide]) -> Predictor:
    """Predict each gene's mean over the spots of the training slides that measure it."""
    mean = mean_of_measured(np.concatenate([slide.truth.astype(np.float64) for slide in train]))
    return lambda slide: np.tile(mean, (len(slide), 1))


def fit_ridge(
    train: Sequence[Slide],
    *,
    n_components: int | None = 256,
    alpha: float | None = None,
    seed: int = 0,
    exact: bool = True,
) -> Predictor:
    """Fit HEST-bench's ridge on principal components of the standardised embeddings.

    Args:
        train: training slides with ``y``.
        n_components: number of components, at most the rank of the data; None fits the raw
            embeddings, unscaled.
        alpha: L2 penalty; None takes HEST's 100 / (columns · genes).
        seed: of the randomised PCA.
        exact: use an exact solver and an intercept, which changes no correlation as components are
            centred; False follows HEST's code: LSQR without intercept.

    Source: Jaume et al., HEST-1k, NeurIPS 2024; ``hest/bench/trainer.py``.
    """
    if alpha is None:
        alpha = 100 / (_n_columns(train, n_components) * train[0].truth.shape[1])
    if exact:
        ridge = Ridge(alpha=alpha, solver="svd")  # stable at a small penalty for any rank
    else:
        ridge = Ridge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000)
    return _fit_probe(train, ridge, n_components, seed)


def fit_forest(
    train: Sequence[Slide], *, n_components: int | None = 256, seed: int = 0
) -> Predictor:
    """Fit a random forest of HEST-bench's 70 trees on the same components as :func:`fit_ridge`.

    One forest predicts all genes; HEST fits a forest per gene on a GPU, for 50 genes thirty times
    the work.

    Args:
        train: training slides with ``y``.
        n_components: as :func:`fit_ridge`.
        seed: of the randomised PCA and of the trees.
    """
    forest = RandomForestRegressor(70, min_samples_leaf=5, random_state=seed)
    return _fit_probe(train, forest, n_components, seed)


def _n_columns(train: Sequence[Slide], n_components: int | None) -> int:
    width = train[0].x.shape[1]
    if n_components is None:
        return width
    # centred rows span one dimension less than there are rows
    return max(1, min(n_components, width, sum(map(len, train)) - 1))


def _fit_probe(
    train: Sequence[Slide], regressor: BaseEstimator, n_components: int | None, seed: int
) -> Predictor:
    """Fit a regressor on components of standardised embeddings, or on the raw embeddings."""
    x = np.concatenate([slide.x for slide in train]).astype(np.float64)
    y = np.concatenate([slide.truth.astype(np.float64) for slide in train])
    steps: list[BaseEstimator] = [regressor]
    if n_components is not None:
        reduce = PCA(_n_columns(train, n_components), random_state=seed)
        steps = [StandardScaler(), reduce, regressor]
    if y.shape[1] == 1:  # a forest warns of a column
        y = y[:, 0]
    model: Pipeline = make_pipeline(*steps).fit(x, y)
    return lambda slide: model.predict(slide.x.astype(np.float64)).reshape(len(slide), -1)


def fit_tuned_ridge(
    train: Sequence[Slide], hops: Sequence[int] = (), *, seed: int = 0
) -> Predictor:
    """Fit a ridge whose penalty and smoothing are chosen on held-out training slides.

    Embeddings are scaled and expression is centred within each slide; candidates are scored by
    the mean PCC in cross-validation over the training slides
    (``data.validation.split_validation``), and the best is refitted on all.

    Args:
        train: training slides with ``y``.
        hops: numbers of diffusion steps along the spatial graph whose averages of the embeddings
            are further features: a linear model on the inputs of a graph denoiser's first layer.
        seed: of the split, where there are only one or two slides.
    """
    features = functools.cache(lambda slide: _features(slide, hops))  # every split reads them

    def path(slides: Sequence[Slide]) -> RidgePath:
        return RidgePath.fit([features(s) for s in slides], [s.truth for s in slides])

    def held_out(slide: Slide) -> HeldOutPart:
        finishes = [
            functools.partial(_smooth, coords=slide.coords, n_neighbors=n) for n in _SMOOTHINGS
        ]
        return HeldOutPart(features(slide), slide.truth, finishes)

    scores = np.full((len(ALPHAS), len(_SMOOTHINGS)), np.nan)
    if len(train) >= 3 or min(map(len, train)) >= _MIN_SPOTS:
        splits = split_validation(train, seed, max(2, len(train)))
        parts = [[held_out(slide) for slide in validate] for _, validate in splits]
        scores = held_out_scores((path(learn) for learn, _ in splits), parts)
    # no score is defined on very small or constant slides: the middle of the grid
    best = np.nanargmax(scores) if np.isfinite(scores).any() else scores.size // 2
    i, j = np.unravel_index(best, scores.shape)
    weights = path(train).weights(ALPHAS[i])
    level = np.mean([slide.truth.astype(np.float64).mean(axis=0) for slide in train], axis=0)
    return lambda slide: (
        level + _smooth(_features(slide, hops) @ weights, slide.coords, _SMOOTHINGS[j])
    )


def _features(slide: Slide, hops: Sequence[int]) -> np.ndarray:
    scaling = Normalisation.fit(
        [slide.x], [np.zeros((len(slide), 1))], "center" if hops else "slide", False
    )
    x = scaling.embeddings(slide.x).astype(np.float64)
    if not hops:
        return x
    import torch

    from stflow_graph.graph import NeighbourhoodContext, SpatialGraph

    data = SpatialGraph()(slide.to_data())
    data.x = torch.from_numpy(x)
    return np.concatenate([x, NeighbourhoodContext(hops)(data).context.numpy()], axis=1)


def smoothed(predictor: Predictor, n_neighbors: int = 6) -> Predictor:
    """Average a prediction over each spot and its nearest spots with equal weights."""
    return lambda slide: _smooth(predictor(slide), slide.coords, n_neighbors)


def _smooth(values: np.ndarray, coords: np.ndarray, n_neighbors: int) -> np.ndarray:
    if not n_neighbors:
        return values
    neighbours = neighbour_mean(coords, n_neighbors)
    count = np.diff(neighbours.indptr)[:, None]
    return (values + count * (neighbours @ values)) / (1 + count)


def darkness(patches: str | Path, barcodes: Sequence[str]) -> np.ndarray:
    """Return the darkness of each spot's patch, 255 − mean red value, ``[N]`` float64.

    Haematoxylin absorbs red, so darkness follows the number of cells and thus sequencing depth. It
    is untrained and not in units of expression: only its correlations are meaningful. Patches are
    read sequentially in small batches.

    Args:
        patches: patch file of the slide.
        barcodes: N spots.

    Raises:
        BadInput: a spot has no patch, or the file cannot be read.
    """
    with open_patches(patches) as file:
        rows = rows_of(barcodes, file.barcodes, patches, "barcode")
        dark = np.empty(len(file))
        for start in range(0, len(file), _BATCH):
            red = file.images[start : start + _BATCH, :, :, 0]
            dark[start : start + _BATCH] = 255 - red.mean(axis=(1, 2), dtype=np.float64)
    return dark[rows]
