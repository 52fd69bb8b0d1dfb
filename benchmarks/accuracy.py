"""Which model predicts held-out slides best: every fold, both targets, several seeds, baselines.

usage: python benchmarks/accuracy.py --root ROOT --embeddings EMB --out OUT
           [--targets log1p log1p_normalised] [--models graph one-shot transformer] [--folds 0 1 2]
           [--seeds 5] [--jobs 2] [--gene-list var_50genes.json] [--encoder NAME] [--quick]
       python benchmarks/accuracy.py --simulated --out OUT [...]

ROOT is a HEST-bench root with one data set, or a data set folder; --simulated draws a cohort in
OUT. Nothing is chosen on test slides: models choose their epoch, ridges their penalty and smoothing
on training slides. Every cell (model, target, seed, fold) is kept in OUT, so what was done is not
done again. Prints tables with 95% intervals from resampled spots, paired between models; writes
OUT/accuracy.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import matplotlib
import numpy as np
import scipy.sparse as sp
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from stflow_graph.config import load_config, parse_assignments
from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.load import load_sample
from stflow_graph.data.normalise import to_target
from stflow_graph.data.splits import Dataset, Fold, find_datasets, find_embedding
from stflow_graph.encoders import create_encoder
from stflow_graph.evaluation.baselines import DARKNESS, SIMPLE_GNN, darkness, fit_baselines
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.expression import read_expression
from stflow_graph.io.predictions import read_prediction
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.embed import embed
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train
from stflow_graph.stats import ensembles, metrics, resampling

MODELS: dict[str, dict[str, Any]] = {
    "graph": {},
    "one-shot": {"flow.kind": "none"},
    "spot flow": {"flow.kind": "spot"},
    "flow in every step": {"flow.kind": "graph"},
    "transformer": {"denoiser.name": "transformer"},
}
N_SAMPLES = 16
CEILING, TRUE_MEAN = "noise ceiling", "true mean (simulator)"
QUICK = {
    "train.epochs": 2,
    "train.members": 2,
    "train.flow_steps": 20,
    "train.regions_per_slide": 1,
    "denoiser.n_layers": 1,
}


class Cell(NamedTuple):
    """One prediction: of a slide by a model with a seed; ``samples`` is None without a flow.

    ``expected`` is the PCC of each gene that the model scored on held-out training slides.
    """

    model: str
    seed: int
    slide: str
    mean: np.ndarray
    samples: np.ndarray | None = None
    expected: np.ndarray | None = None


class Truth(NamedTuple):
    """The measured expression ``[N, G]`` of a test slide, its positions and its noise ceiling."""

    y: np.ndarray
    coords: np.ndarray
    genes: list[str]
    ceiling: np.ndarray
    extra: dict[str, np.ndarray]


# running cells


def settings_of(model: str, target: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a model is trained with."""
    return {
        "data.source_dataroot": str(options.root),
        "data.embed_dataroot": str(options.embeddings),
        "data.encoder": options.encoder,
        "data.gene_list": options.gene_list,
        "data.target": target,
        "train.seed": seed,
        "train.folds": options.folds,
        **(QUICK if options.quick else {}),
        **MODELS[model],
        **parse_assignments(options.set),
    }


def folder_of(model: str, target: str, seed: int, options: argparse.Namespace) -> Path:
    """Return where a model's runs are kept."""
    return options.out / target / f"{model.replace(' ', '-')}-seed{seed}"


def run_model(model: str, target: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train on every fold and predict its test slides; what is there is left."""
    torch.set_num_threads(1)
    out = folder_of(model, target, seed, options)
    config = load_config(None, settings_of(model, target, seed, options))
    results = train(config, out)
    n_samples = 1 if config.flow.kind == "none" else N_SAMPLES
    names = [slide for result in results for slide in result.test_pearson]
    files = embedding_files(names, options)
    sample(out, files, out / "predictions", SampleSettings(n_samples=n_samples, seed=seed))
    return {
        "target": target,
        "model": model,
        "seed": seed,
        "validation": [result.validation_pearson for result in results],
        "best_epochs": [[record.epoch for record in result.best] for result in results],
    }


def embedding_files(slides: Sequence[str], options: argparse.Namespace) -> list[Path]:
    """Return where the embeddings of slides are."""
    (dataset,) = find_datasets(options.root, options.datasets)
    return [find_embedding(options.embeddings, dataset.name, options.encoder, s) for s in slides]


def run_baselines(target: str, seed: int, options: argparse.Namespace) -> None:
    """Fit the baselines on every fold and predict its test slides; seeds beyond 0: the GNN."""
    torch.set_num_threads(1)
    (dataset,) = find_datasets(options.root, options.datasets)
    for fold in wanted_folds(dataset, options):
        file = options.out / target / "baselines" / f"fold{fold.index}-seed{seed}.npz"
        if file.exists():
            continue
        genes = read_gene_list(dataset.gene_list_path(options.gene_list, fold))
        learn, test = (
            [load_sample(s, options.embeddings, options.encoder, genes, target) for s in part]
            for part in (fold.train, fold.test)
        )
        if seed:
            from stflow_graph.evaluation.gnn_baseline import fit_simple_gnn

            fitted = {SIMPLE_GNN: fit_simple_gnn(learn, seed=seed)}
        else:
            fitted = fit_baselines(learn, slow=True, seed=seed)
        found = {
            f"{name}/{slide.name}": predict(slide).astype(np.float32)
            for name, predict in fitted.items()
            for slide in test
        }
        for sample_, slide in zip(fold.test, test, strict=True):
            if not seed and sample_.patches_path.exists():
                dark = darkness(sample_.patches_path, slide.barcodes)
                found[f"{DARKNESS}/{slide.name}"] = np.repeat(dark[:, None], len(genes), 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, **found)
        temporary.rename(file)


def wanted_folds(dataset: Dataset, options: argparse.Namespace) -> list[Fold]:
    """Return the folds asked for, all if none were."""
    return [f for f in dataset.folds() if not options.folds or f.index in options.folds]


# reading results


def read_truths(target: str, options: argparse.Namespace) -> dict[str, Truth]:
    """Return the truth of every test slide, spots in the order of its embedding file."""
    (dataset,) = find_datasets(options.root, options.datasets)
    truths = {}
    for fold in wanted_folds(dataset, options):
        genes = read_gene_list(dataset.gene_list_path(options.gene_list, fold))
        for each in fold.test:
            slide = load_sample(each, options.embeddings, options.encoder, genes, target)
            expression = read_expression(each.expr_path, genes)
            place = {barcode: i for i, barcode in enumerate(expression.barcodes)}
            rows = [place[barcode] for barcode in slide.barcodes]
            ceiling = resampling.noise_ceiling(
                expression.counts[rows].toarray(),
                expression.total[rows],
                lambda half, total: to_target(sp.csr_matrix(half), total, target),
                np.random.default_rng(0),
            )
            extra = {}
            if expression.true_mean is not None and target == "log1p":
                extra[TRUE_MEAN] = expression.true_mean[rows]
            truths[slide.name] = Truth(slide.truth, slide.coords, genes, ceiling, extra)
    return truths


def read_cells(target: str, truths: dict[str, Truth], options: argparse.Namespace) -> list[Cell]:
    """Return every prediction of a target."""
    cells = []
    for model in options.models:
        for seed in range(options.seeds):
            folder = folder_of(model, target, seed, options) / "predictions"
            for slide in truths:
                found = read_prediction(folder / f"{slide}.h5ad")
                cells.append(
                    Cell(model, seed, slide, found.mean, found.samples, found.expected_pearson)
                )
    for file in sorted((options.out / target / "baselines").glob("fold*-seed*.npz")):
        seed = int(file.stem.rpartition("seed")[2])
        with np.load(file) as stored:
            for key in stored.files:
                name, _, slide = key.rpartition("/")
                if slide in truths and seed < options.seeds:
                    cells.append(Cell(name, seed, slide, stored[key]))
    for slide, truth in truths.items():
        cells += [Cell(name, 0, slide, mean) for name, mean in truth.extra.items()]
    return cells


def score(cells: Sequence[Cell], truths: dict[str, Truth]) -> dict[str, Any]:
    """Return for each model its PCC by slide and seed, intervals and differences to the first."""
    names = list(dict.fromkeys(cell.model for cell in cells))
    slides = list(truths)
    resampled: dict[str, np.ndarray] = {name: np.zeros(1000) for name in names}
    table: dict[str, Any] = {
        name: {"slides": {}, "per_gene": {}, "behind_by_slide": {}} for name in names
    }
    for slide, truth in truths.items():
        here = [cell for cell in cells if cell.slide == slide]
        means = {f"{cell.model}/{cell.seed}": cell.mean for cell in here}
        rng = np.random.default_rng([0, slides.index(slide)])
        boot = resampling.bootstrap_pearson(means, truth.y, rng, 1000)
        for name in names:
            own = [cell for cell in here if cell.model == name]
            per_gene = [metrics.pearson_per_gene(cell.mean, truth.y) for cell in own]
            table[name]["slides"][slide] = [metrics.mean_of_defined(r) for r in per_gene]
            table[name]["per_gene"][slide] = [[metrics.none_if_nan(v) for v in r] for r in per_gene]
            if own:
                drawn = np.mean([boot[f"{name}/{cell.seed}"] for cell in own], axis=0)
                resampled[name] += drawn / len(slides)
                if name == names[0]:
                    of_reference = drawn
                table[name]["behind_by_slide"][slide] = resampling.interval(of_reference - drawn)
    reference = names[0]
    for name in names:
        by_slide = list(table[name]["slides"].values())
        if not all(by_slide):  # a slide without patches has no darkness
            resampled[name][:] = np.nan
        seeds = np.mean(by_slide, axis=0) if all(by_slide) else np.array([np.nan])
        table[name] |= {
            "mean": float(np.mean(seeds)),
            "sd": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0,
            "seeds": seeds.tolist(),
            "interval": resampling.interval(resampled[name]),
            "behind": float(np.mean(table[reference].get("seeds", seeds)) - np.mean(seeds)),
            "behind_interval": resampling.interval(resampled[reference] - resampled[name]),
        }
    return table


def structure(cells: Sequence[Cell], truths: dict[str, Truth]) -> dict[str, dict[str, float]]:
    """Return what the mean and single samples keep of the truth's structure; means over cells."""
    found: dict[str, list[dict[str, float]]] = {}
    for cell in cells:
        truth = truths[cell.slide]
        weights = metrics.neighbour_mean(truth.coords)
        moran = metrics.morans_i(truth.y, weights)
        views = {f"{cell.model}, mean": cell.mean}
        if cell.samples is not None:
            views[f"{cell.model}, a sample"] = cell.samples[0]
        for name, values in views.items():
            if cell.model == DARKNESS:
                continue
            measures = {
                "PCC": metrics.mean_of_defined(metrics.pearson_per_gene(values, truth.y)),
                "RVD": metrics.mean_of_defined(
                    metrics.relative_variation_per_gene(values, truth.y)
                ),
                "gene-gene": metrics.gene_correlation_distance(values, truth.y),
                "Δ Moran": metrics.mean_of_defined(metrics.morans_i(values, weights) - moran),
                "CRPS": metrics.mean_of_defined(ensembles.crps_per_gene(values[None], truth.y)),
            }
            if cell.samples is not None and name.endswith("mean"):
                measures["CRPS"] = metrics.mean_of_defined(
                    ensembles.crps_per_gene(cell.samples, truth.y)
                )
                for each in ensembles.coverage(cell.samples, truth.y):
                    measures[f"{100 * each.level:.0f}%"] = each.covered
                    if each.level == 0.8:
                        measures["80% width"] = each.width
            found.setdefault(name, []).append(measures)
    return {
        name: {k: metrics.mean_of_defined(np.array([row[k] for row in rows])) for k in rows[0]}
        for name, rows in found.items()
    }


def coverage_by_slide(cells: Sequence[Cell], truths: dict[str, Truth]) -> dict[str, Any]:
    """Return ``{model: {slide: {level: covered}}}``, means over seeds."""
    found: dict[str, Any] = {}
    for cell in cells:
        if cell.samples is None:
            continue
        of_slide = found.setdefault(cell.model, {}).setdefault(cell.slide, {})
        for each in ensembles.coverage(cell.samples, truths[cell.slide].y):
            of_slide.setdefault(f"{100 * each.level:.0f}%", []).append(each.covered)
    return {
        model: {s: {k: float(np.mean(v)) for k, v in levels.items()} for s, levels in of.items()}
        for model, of in found.items()
    }


def trust(cells: Sequence[Cell], truths: dict[str, Truth]) -> dict[str, dict[str, float]]:
    """Return by model and slide the rank correlation over genes of expected and actual PCC."""
    found: dict[str, Any] = {}
    for cell in cells:
        if cell.expected is not None:
            actual = metrics.pearson_per_gene(cell.mean, truths[cell.slide].y)
            known = np.isfinite(actual) & np.isfinite(cell.expected)
            rank = spearmanr(cell.expected[known], actual[known]).statistic
            found.setdefault(cell.model, {}).setdefault(cell.slide, []).append(float(rank))
    return {m: {s: float(np.mean(v)) for s, v in of.items()} for m, of in found.items()}


def classes(table: dict[str, Any], truths: dict[str, Truth], root: Path) -> dict[str, Any]:
    """Return PCC by class of genes where a simulated cohort names them."""
    var = anndata.read_h5ad(next(iter(sorted((root / "adata").glob("*.h5ad")))), backed="r").var
    if "gene_class" not in var:
        return {}
    known = dict(var["gene_class"])
    kinds = sorted(set(known.values()))
    found: dict[str, Any] = {}
    for name, row in table.items():
        values: dict[str, list[float]] = {kind: [] for kind in kinds}
        for slide, seeds in row["per_gene"].items():
            kind_of = np.array([known[gene] for gene in truths[slide].genes])
            for per_gene in seeds:
                r = np.array(per_gene, dtype=np.float64)
                for kind in kinds:
                    values[kind].append(metrics.mean_of_defined(r[kind_of == kind]))
        found[name] = {
            kind: metrics.mean_of_defined(np.array(v)) for kind, v in values.items() if v
        }
    ceiling: dict[str, list[float]] = {kind: [] for kind in kinds}
    for truth in truths.values():
        kind_of = np.array([known[gene] for gene in truth.genes])
        for kind in kinds:
            ceiling[kind].append(metrics.mean_of_defined(truth.ceiling[kind_of == kind]))
    found[CEILING] = {kind: metrics.mean_of_defined(np.array(v)) for kind, v in ceiling.items()}
    return found


# showing them


def as_rows(target: str, table: dict[str, Any], truths: dict[str, Truth]) -> list[list[str]]:
    """Return the main table of a target, the heading first."""
    ceilings = {slide: metrics.mean_of_defined(t.ceiling) for slide, t in truths.items()}
    mean_ceiling = float(np.mean(list(ceilings.values())))
    few = list(truths) if len(truths) <= 6 else []
    first = next(iter(table))
    rows = [[f"PCC, {target}", *few, "mean", "95%", "ceiling", f"{first} − it"]]
    for name, row in table.items():
        low, high = row["interval"]
        behind = "" if name == first else f"{row['behind']:+.3f}"
        if behind and np.isfinite(row["behind_interval"][0]):
            behind += " ({:+.3f} to {:+.3f})".format(*row["behind_interval"])
        cells = [plus_minus(row["slides"][slide]) for slide in few]
        known = np.isfinite(row["mean"])
        rows.append(
            [
                name,
                *cells,
                plus_minus(row["seeds"]) if known else "–",
                f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "–",
                f"{row['mean'] / mean_ceiling:.0%}" if known else "–",
                behind if known else "–",
            ]
        )
    rows.append(
        [CEILING, *(f"{ceilings[s]:.3f}" for s in few), f"{mean_ceiling:.3f}", "", "100%", ""]
    )
    return rows


def by_slide_rows(target: str, table: dict[str, Any], slides: Sequence[str]) -> list[list[str]]:
    """Return how far each model is behind the first on each slide, with 95% intervals."""
    first = next(iter(table))
    reference = table[first]["slides"]
    rows = [[f"{first} − it, {target}", *slides]]
    for name, row in table.items():
        cells = []
        for slide in slides:
            interval = row["behind_by_slide"].get(slide)
            if name == first or interval is None or not np.isfinite(interval[0]):
                continue
            behind = np.mean(reference[slide]) - np.mean(row["slides"][slide])
            cells.append("{:+.3f} ({:+.3f} to {:+.3f})".format(behind, *interval))
        if len(cells) == len(slides):
            rows.append([name, *cells])
    return rows


def plus_minus(values: Sequence[float]) -> str:
    """Return mean ± sd, the mean alone of one value, a dash of none."""
    found = np.array(values, dtype=np.float64)
    if not len(found) or not np.isfinite(found).all():
        return "–"
    if len(found) == 1:
        return f"{found[0]:.3f}"
    return f"{found.mean():.3f} ± {found.std(ddof=1):.3f}"


def from_dicts(title: str, rows: dict[str, dict[str, float]]) -> list[list[str]]:
    """Return a table of named rows of named numbers, the heading first.

    Columns in which nothing is defined are left out.
    """
    columns = dict.fromkeys(c for row in rows.values() for c, v in row.items() if np.isfinite(v))
    lines = [[title, *columns]]
    for name, row in rows.items():
        known = {c: f"{v:.3f}" if np.isfinite(v) else "–" for c, v in row.items()}
        lines.append([name, *(known.get(c, "") for c in columns)])
    return lines


def show(console: Console, rows: list[list[str]]) -> str:
    """Print a table and return it as Markdown, as in RESULTS.md without zeros before points."""
    table = Table(rows[0][0])
    for column in rows[0][1:]:
        table.add_column(column, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    return re.sub(r"(?<![\d.])0\.(?=\d)", ".", text)


def draw(tables: dict[str, dict[str, Any]], ceilings: dict[str, float], file: Path) -> None:
    """Draw each target's models as bars with their seeds as dots and their intervals."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(tables), figsize=(5.2 * len(tables), 3.6), layout="constrained", squeeze=False
    )
    for axis, (target, table) in zip(axes[0], tables.items(), strict=True):
        known = {name: row for name, row in table.items() if np.isfinite(row["mean"])}
        names = sorted(known, key=lambda name: known[name]["mean"])
        for place, name in enumerate(names):
            row = known[name]
            colour = "tab:orange" if name in MODELS else "tab:gray"
            axis.barh(place, row["mean"], 0.7, color=colour, alpha=0.75)
            axis.plot(row["interval"], [place, place], "k-", linewidth=1)
            axis.plot(row["seeds"], [place] * len(row["seeds"]), "k.", markersize=3)
        axis.axvline(ceilings[target], color="k", linestyle=":", linewidth=1)
        axis.text(
            ceilings[target],
            -0.4,
            f"{CEILING} ",
            fontsize=8,
            rotation=90,
            ha="right",
            va="bottom",
        )
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(f"PCC of {target}, mean over genes and slides")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def parse(description: str | None = __doc__) -> argparse.Namespace:
    """Return the options, with the cohort drawn if one is to be."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--simulated", action="store_true", help="draw a cohort in OUT")
    parser.add_argument("--slides", type=int, default=6, help="of the cohort drawn")
    parser.add_argument("--spots", type=int, default=400, help="of each of its slides")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--datasets", nargs="*", default=[])
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--gene-list", default="var_50genes.json")
    parser.add_argument("--targets", nargs="*", default=["log1p", "log1p_normalised"])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--folds", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    options = parser.parse_args()
    if options.simulated:
        options.root, options.embeddings = options.out / "cohort", options.out / "embeddings"
        if not (options.root / "splits").exists():
            shutil.rmtree(options.root, ignore_errors=True)
            simulate_cohort(options.root, n_slides=options.slides, n_spots=options.spots)
        embed(options.root, options.embeddings, create_encoder(options.encoder))
    elif options.root is None or options.embeddings is None:
        parser.error("--root and --embeddings, or --simulated")
    return options


def main() -> None:
    """Run what is missing, print the tables, write JSON, Markdown and PNG."""
    options, console = parse(), Console(width=150)
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    runs = []
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        seeds = range(options.seeds)
        fits = [pool.submit(run_baselines, t, s, options) for s in seeds for t in options.targets]
        trained = [
            pool.submit(run_model, m, t, s, options)
            for s in seeds
            for t in options.targets
            for m in options.models
        ]
        for job in fits:
            job.result()
        for job in trained:
            runs.append(job.result())
            console.print(json.dumps(runs[-1]), highlight=False, soft_wrap=True)
    found: dict[str, Any] = {"runs": runs, "targets": {}}
    tables, ceilings, parts = {}, {}, []
    for target in options.targets:
        truths = read_truths(target, options)
        cells = read_cells(target, truths, options)
        tables[target] = score(cells, truths)
        ceilings[target] = float(
            np.mean([metrics.mean_of_defined(t.ceiling) for t in truths.values()])
        )
        shape, covered = structure(cells, truths), coverage_by_slide(cells, truths)
        known = trust(cells, truths)
        by_class = classes(tables[target], truths, options.root)
        parts.append(show(console, as_rows(target, tables[target], truths)))
        parts.append(show(console, from_dicts(f"structure, {target}", shape)))
        if len(truths) <= 6:
            parts.append(show(console, by_slide_rows(target, tables[target], list(truths))))
        for model, of_slide in covered.items():
            parts.append(show(console, from_dicts(f"coverage, {model}, {target}", of_slide)))
        if known:
            parts.append(show(console, from_dicts(f"expected PCC ranks genes, {target}", known)))
        if by_class:
            parts.append(show(console, from_dicts(f"PCC by class, {target}", by_class)))
        found["targets"][target] = {
            "table": tables[target],
            "structure": shape,
            "coverage": covered,
            "trust": known,
            "classes": by_class,
            "ceiling": {s: metrics.mean_of_defined(t.ceiling) for s, t in truths.items()},
        }
    (options.out / "accuracy.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (options.out / "accuracy.md").write_text("\n".join(parts), encoding="utf-8")
    draw(tables, ceilings, options.out / "accuracy.png")
    console.print(f"{options.out}/accuracy.json, .md and .png written")


if __name__ == "__main__":
    main()
