"""What measured spots are worth: predictions of the other spots with and without them.

usage: python benchmarks/evidence.py RUN [RUN ...] --root ROOT --embeddings EMB --out OUT
           [--repeats 5] [--seed 0]

Of every test slide of the runs (of ``train``, one a seed) a part of the spots is given, scattered
(10, 30, 50%) or one half of the slide in a random direction, and the other spots are scored: mean
PCC over genes and mean square error in units of each gene's variance over the slide. Beside the
model: the model with nothing observed; ordinary kriging and a Gaussian process of its residuals
(one kernel for all genes; range and nugget by four-fold cross-validation on the observed spots, and
by marginal likelihood, scikit-learn); the mean of the five nearest observed spots; ridge fitted to
training slides and observed spots together. "Half the genes" gives these of all spots; beside it, a
ridge from these genes and the prediction to the others, fitted on training slides (whose prediction
has seen them). Also coverage of 80% intervals of the other spots, of their means over 9, 25 and 64,
and over the slide. Means over repeats and runs; intervals of the difference from the better of
kriging and Gaussian process are 95%, bootstrap over repeats and runs. Prints a table, writes
OUT/evidence.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import RidgeCV

from stflow_graph.data.load import load_slide
from stflow_graph.data.observed import Observed
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import find_embedding
from stflow_graph.evaluation.baselines import fit_tuned_ridge
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.models.checkpoint import find_checkpoints, load_checkpoint
from stflow_graph.stats import metrics, scales

PARTS: tuple[float | str, ...] = (0.1, 0.3, 0.5, "half of the slide", "half of the genes")
MODEL, NOTHING = "model", "nothing observed"
KRIGING, GAUSSIAN = "kriging", "Gaussian process"
N_SAMPLES = 32


def part_of(slide: Slide, part: float | str, rng: np.random.Generator) -> Observed:
    """Return what is observed."""
    n, n_genes = slide.truth.shape
    rows, genes = np.arange(n), np.arange(n_genes)
    if part == "half of the genes":
        genes = np.sort(rng.choice(n_genes, n_genes // 2, replace=False))
    elif isinstance(part, str):
        angle = rng.uniform(0, 2 * np.pi)
        along = slide.coords @ [np.cos(angle), np.sin(angle)]
        rows = np.flatnonzero(along < np.median(along))
    else:
        rows = np.sort(rng.choice(n, round(part * n), replace=False))
    return Observed(rows, genes, slide.truth[np.ix_(rows, genes)])


def kriged(
    pos: np.ndarray, values: np.ndarray, at: np.ndarray, reach: float, nugget: float
) -> np.ndarray:
    """Return ordinary kriging of values ``[n, G]``, with an exponential variogram."""
    n = len(pos)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = np.exp(-cdist(pos, pos) / reach) + nugget * np.eye(n)
    system[n, n] = 0
    right = np.vstack([np.exp(-cdist(pos, at) / reach), np.ones(len(at))])
    weights = np.linalg.solve(system, right)[:n]
    return weights.T @ values


def tuned_kriging(
    pos: np.ndarray, values: np.ndarray, at: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return ordinary kriging, range and nugget by cross-validation."""
    deviation = np.maximum(values.std(axis=0), 1e-6)
    pitch = np.median(cKDTree(at).query(at, k=2)[0][:, 1])
    folds = np.array_split(rng.permutation(len(pos)), 4)
    errors = {}
    for reach in (1, 2, 4, 8, 16):
        for nugget in (0.3, 1, 3, 10, 30):
            total = 0.0
            for fold in folds:
                keep = np.setdiff1d(np.arange(len(pos)), fold)
                found = kriged(pos[keep], values[keep], pos[fold], reach * pitch, nugget)
                total += float(np.square((found - values[fold]) / deviation).sum())
            errors[reach * pitch, nugget] = total
    return kriged(pos, values, at, *min(errors, key=lambda pair: errors[pair]))


def gaussian_process(pos: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the mean of a Gaussian process, its kernel by marginal likelihood."""
    pitch = np.median(cKDTree(at).query(at, k=2)[0][:, 1])
    kernel = ConstantKernel(0.3) * Matern(4.0, (0.5, 100.0), nu=0.5) + WhiteKernel(0.7)
    process = GaussianProcessRegressor(kernel, normalize_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound of the range is an answer
        return process.fit(pos / pitch, values).predict(at / pitch)


def other_spots(
    slide: Slide, mean: np.ndarray, seen: Observed, train: list[Slide], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return predictions ``[N, G]`` that use the observed spots without the model's field."""
    pos, rows = slide.coords, seen.rows
    residuals = (seen.values - mean[rows]).astype(np.float64)
    _, near = cKDTree(pos[rows]).query(pos, k=min(5, len(rows)))
    refitted = fit_tuned_ridge([*train, slide.take(rows)])
    return {
        KRIGING: mean + tuned_kriging(pos[rows], residuals, pos, rng),
        GAUSSIAN: mean + gaussian_process(pos[rows], residuals, pos),
        "5 nearest observed": seen.values[near].mean(axis=1),
        "ridge refitted": refitted(slide),
    }


def other_genes(
    slide: Slide, mean: np.ndarray, seen: Observed, train: list[Slide], means: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return predictions ``[N, G]`` from the prediction and the genes observed."""
    x = [
        np.hstack([prediction, part.truth[:, seen.genes]])
        for part, prediction in zip(train, means, strict=True)
    ]
    y = np.concatenate([part.truth for part in train])
    ridge = RidgeCV(np.logspace(0, 5, 11)).fit(np.concatenate(x), y)
    return {"ridge on genes": ridge.predict(np.hstack([mean, slide.truth[:, seen.genes]]))}


def scored(prediction: np.ndarray, slide: Slide, seen: Observed) -> dict[str, float]:
    """Return the scores of the spots, or the genes, that were not observed."""
    rows = np.setdiff1d(np.arange(len(slide)), seen.rows)
    genes = np.arange(slide.truth.shape[1])
    if not len(rows):
        rows, genes = seen.rows, np.setdiff1d(genes, seen.genes)
    truth, found = (x[np.ix_(rows, genes)] for x in (slide.truth, np.maximum(prediction, 0)))
    variance = np.maximum(slide.truth[:, genes].var(axis=0), 1e-6)
    pearson = metrics.pearson_per_gene(found, truth)
    return {
        "PCC": metrics.mean_of_defined(pearson),
        "MSE": float((np.square(found - truth) / variance).mean()),
    }


def coverage(samples: np.ndarray, slide: Slide, seen: Observed) -> dict[str, float]:
    """Return how often 80% intervals hold the truth of the spots that were not observed."""
    rows = np.setdiff1d(np.arange(len(slide)), seen.rows)
    if not len(rows):
        return {}
    parts = scales.coverage_by_scale(samples[:, rows], slide.truth[rows], slide.coords[rows])
    return {
        f"{'slide' if part.whole else part.spots}": part.raw[1].covered
        for part in parts
        if not part.gene_mean
    }


class Trained:
    """A fold of a run, its training slides and its predictions of them."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.checkpoint = load_checkpoint(folder)
        self.predictor = Predictor(self.checkpoint, "cpu")
        self.options = options
        provenance = self.checkpoint.provenance
        self.tests = [self.slide(name) for name in provenance["test_slides"]]
        self.train = [self.slide(name) for name in provenance["train_slides"]]
        self.means = [self.predict(slide, None)[0] for slide in self.train]

    def slide(self, name: str) -> Slide:
        """Return a slide with the truth."""
        data, dataset = self.checkpoint.config.data, self.checkpoint.provenance["dataset"]
        file = find_embedding(self.options.embeddings, dataset, data.encoder, name)
        truth, target = self.options.root / "adata" / f"{name}.h5ad", data.target
        return load_slide(file, truth, self.checkpoint.genes, target=target)

    def predict(
        self, slide: Slide, seen: Observed | None, n_samples: int = 1
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return mean and samples of a slide."""
        settings = SampleSettings(n_samples, seed=self.options.seed, device="cpu")
        blocks = list(self.predictor.blocks(slide, settings, seen))
        samples = [block.samples for block in blocks if block.samples is not None]
        mean = np.concatenate([block.mean for block in blocks])
        return mean, np.concatenate(samples, axis=1) if samples else None


def measure(fold: Trained, repeats: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return ``{slide: {part: {"scores": {row: [score ...]}, "coverage": [...]}}}``."""
    found: dict[str, dict[str, Any]] = {}
    for slide in fold.tests:
        mean = fold.predict(slide, None)[0]
        for part in PARTS:
            scores: dict[str, list[dict[str, float]]] = defaultdict(list)
            covered = []
            for repeat in range(repeats):
                rng = np.random.default_rng([seed, repeat])
                seen = part_of(slide, part, rng)
                predictions = {NOTHING: mean}
                if part == "half of the genes":
                    predictions |= other_genes(slide, mean, seen, fold.train, fold.means)
                else:
                    predictions |= other_spots(slide, mean, seen, fold.train, rng)
                predictions[MODEL], samples = fold.predict(slide, seen, N_SAMPLES)
                assert samples is not None
                for name, prediction in predictions.items():
                    scores[name].append(scored(prediction, slide, seen))
                covered.append(coverage(samples, slide, seen))
            place = found.setdefault(slide.name, {})
            place[str(part)] = {"scores": dict(scores), "coverage": covered}
    return found


def interval(differences: np.ndarray) -> list[float]:
    """Return the mean and its 95% bootstrap interval."""
    chosen = np.random.default_rng(0).integers(len(differences), size=(2000, len(differences)))
    ends = np.quantile(differences[chosen].mean(axis=1), [0.025, 0.975])
    return [float(differences.mean()), *ends.tolist()]


def summarise(runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return means over runs and repeats of every slide and part, and of the slides' mean."""
    summary: dict[str, Any] = {}
    for part in map(str, PARTS):
        by_slide = {}
        for slide in runs[0]:
            names = runs[0][slide][part]["scores"]
            values = {
                name: {
                    key: np.array(
                        [s[key] for run in runs for s in run[slide][part]["scores"][name]]
                    )
                    for key in ("PCC", "MSE")
                }
                for name in names
            }
            by_slide[slide] = values
            covered = [each for run in runs for each in run[slide][part]["coverage"]]
            summary.setdefault(slide, {})[part] = {
                **_row(values),
                "coverage": {k: float(np.mean([c[k] for c in covered])) for k in covered[0]},
            }
        pooled = {
            name: {
                key: np.mean([values[name][key] for values in by_slide.values()], axis=0)
                for key in ("PCC", "MSE")
            }
            for name in next(iter(by_slide.values()))
        }
        summary.setdefault("mean", {})[part] = _row(pooled)
    return summary


def _row(values: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    rivals = [name for name in (KRIGING, GAUSSIAN) if name in values]
    rivals = rivals or [name for name in values if name.startswith("ridge")]
    best = max(rivals, key=lambda name: values[name]["PCC"].mean())
    gain = values[MODEL]["PCC"]
    return {
        **{name: {key: float(v.mean()) for key, v in row.items()} for name, row in values.items()},
        "less nothing": interval(gain - values[NOTHING]["PCC"]),
        "less best": interval(gain - values[best]["PCC"]),
    }


def table_of(summary: dict[str, Any]) -> Table:
    """Return the table: PCC, and its gain in brackets."""
    table = Table("slide", "observed", "", "PCC", "gain", "MSE", "80% intervals: 1, 9, 25, slide")
    for slide, parts in summary.items():
        for part, row in parts.items():
            names = [
                name for name, value in row.items() if isinstance(value, dict) and "PCC" in value
            ]
            for name in names:
                gain = row[name]["PCC"] - row[NOTHING]["PCC"]
                cells = [f"{row[name]['PCC']:.3f}", f"{gain:+.3f}", f"{row[name]['MSE']:.3f}", ""]
                if name == MODEL:
                    ends = "{:+.3f} ({:+.3f} to {:+.3f})"
                    cells[1] = ends.format(*row["less nothing"])
                    covered = row.get("coverage", {})
                    cells[3] = " ".join(f"{covered[k]:.2f}" for k in covered if k != "64")
                table.add_row(slide, part, name, *cells)
            against = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["less best"])
            table.add_row(slide, part, "model, less the best of kriging", "", against, "", "")
            table.add_section()
    return table


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, runs = Console(width=140), []
    for run in options.runs:
        found: dict[str, dict[str, Any]] = {}
        for folder in find_checkpoints(run):
            found |= measure(Trained(folder, options), options.repeats, options.seed)
        runs.append(found)
        console.print(f"{run} done", style="dim")
    summary = summarise(runs)
    console.print(table_of(summary))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evidence.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    console.print(f"{options.out / 'evidence.json'} written")


if __name__ == "__main__":
    main()
