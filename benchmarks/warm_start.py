"""Whether starting from a model of another stain beats starting from nothing, with few slides.

usage: python benchmarks/warm_start.py --out OUT [--slides 1 2 4] [--seeds 0 1 2] [--epochs 80]
           [--spots 400]

A model is trained on twelve simulated slides of the usual stain, on half of the genes. Slides of
other patients in the stain of another laboratory follow: 1, 2 or 4 to train on, four to test. Rows
are networks from nothing, from the model (``train --from``), and the model as it is on the genes
that it has. Scores are PCC, mean over genes and test slides; a seed is that of the simulation and
of the training. Intervals are 95% of the paired differences, by bootstrap over the test slides of
all seeds. Writes OUT/warm_start.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from stflow_graph.config import load_config
from stflow_graph.data.genes import read_gene_list, write_gene_list
from stflow_graph.data.splits import split_files, write_splits
from stflow_graph.encoders import create_encoder
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.expression import read_expression
from stflow_graph.io.predictions import read_prediction
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.embed import embed
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene
from stflow_graph.stats.resampling import interval

ENCODER = "efficientnet_lite0"
N_SOURCE, N_TEST = 12, 4
AS_IS = "the model as it is"

# a seed's number of slides (0: none) and what its network starts from -> scores of its test slides
Scores = dict[tuple[int, str], dict[str, list[float]]]


def cohorts(out: Path, seed: int, n_slides: int, n_spots: int) -> tuple[Path, Path]:
    """Simulate and embed both cohorts; return their folders."""
    usual, other = out / f"usual{seed}", out / f"other{seed}"
    if not usual.exists():
        simulate_cohort(usual, n_slides=N_SOURCE, n_spots=n_spots, seed=seed)
    if not other.exists():
        simulate_cohort(
            other,
            n_slides=n_slides + N_TEST,
            n_spots=n_spots,
            seed=seed,
            stain="other",
            first_slide=101,
        )
    encoder = create_encoder(ENCODER)
    for folder in (usual, other):
        embed(folder, out / "embeddings", encoder)
    genes = read_gene_list(other / "var_50genes.json")
    write_gene_list(usual / "half.json", genes[::2])
    return usual, other


def run(folder: Path, out: Path, **settings: object) -> Path:
    """Train on a cohort; return the run's folder."""
    values = {key.replace("__", "."): value for key, value in settings.items()}
    places = {
        "data.source_dataroot": str(folder),
        "data.embed_dataroot": str(folder.parent / "embeddings"),
    }
    train(load_config(None, {**places, **values}), out)
    return out


def test_scores(
    model: Path, folder: Path, tests: list[str], groups: dict[str, list[str]]
) -> dict[str, list[float]]:
    """Return each test slide's mean PCC over the genes of each group."""
    files = [folder.parent / f"embeddings/{folder.name}/{ENCODER}/fp32/{t}.h5" for t in tests]
    scores: dict[str, list[float]] = {name: [] for name in groups}
    for done in sample(model, files, model / "predictions", SampleSettings(), overwrite=True):
        prediction = read_prediction(done.path)
        for name, genes in groups.items():
            truth = read_expression(folder / f"adata/{done.slide}.h5ad", genes)
            mean = prediction.mean[:, [prediction.genes.index(gene) for gene in genes]]
            pearson = pearson_per_gene(mean, np.log1p(truth.counts.toarray()))
            scores[name].append(mean_of_defined(pearson))
    return scores


def compare(out: Path, seed: int, options: argparse.Namespace) -> Scores:
    """Train a seed's networks; return their scores."""
    usual, other = cohorts(out, seed, max(options.slides), options.spots)
    common = {"train__epochs": options.epochs, "train__seed": seed}
    source = run(
        usual, out / f"source{seed}", train__folds="all", data__gene_list="half.json", **common
    )
    known = read_gene_list(usual / "half.json")
    new = [gene for gene in read_gene_list(other / "var_50genes.json") if gene not in known]
    groups = {"known": known, "new": new}
    names = sorted(file.stem for file in (other / "adata").glob("*.h5ad"))
    tests = names[-N_TEST:]
    scores = {(0, AS_IS): test_scores(source, other, tests, {"known": known})}
    for n in options.slides:
        # fold 1 tests the last four; the others that are not used are in no fold
        used = names[:n] + tests
        write_splits(other / "splits", split_files(used, [0] * n + [1] * N_TEST))
        for label, start in (("nothing", ""), ("model", str(source))):
            folder = out / f"{label}{n}-{seed}"
            run(other, folder, train__folds=[1], train__warm_start=start, **common)
            scores[n, label] = test_scores(folder, other, tests, groups)
    return scores


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Return the mean of a - b and its interval."""
    values = a - b
    chosen = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = interval(values[chosen].mean(axis=1))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--spots", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=80)
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        for (n, start), groups in compare(options.out, seed, options).items():
            rows.append({"seed": seed, "slides": n, "from": start, **groups})
            means = (f"{group} {np.mean(values):.3f}" for group, values in groups.items())
            print(seed, n, start, *means, flush=True)
    (options.out / "warm_start.json").write_text(json.dumps(rows, indent=1) + "\n")

    def pooled(n: int, start: str, group: str) -> np.ndarray:
        some = [row for row in rows if (row["slides"], row["from"]) == (n, start)]
        return np.concatenate([row[group] for row in some])

    as_is = pooled(0, AS_IS, "known")
    print(f"{AS_IS}: known {as_is.mean():.3f}")
    for n in options.slides:
        for group in ("known", "new"):
            model, nothing = pooled(n, "model", group), pooled(n, "nothing", group)
            print(f"{n} slides, {group}: nothing {nothing.mean():.3f}, model {model.mean():.3f}")
            print(f"  model - nothing {difference(model, nothing)}")
            if group == "known":
                print(f"  model - as it is {difference(model, as_is)}")


if __name__ == "__main__":
    main()
