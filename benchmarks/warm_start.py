"""Whether starting from a model of another stain beats starting from nothing, with few slides.

usage: python benchmarks/warm_start.py --out OUT [--slides 1 2 4] [--seeds 0 1 2] [--epochs 80]
           [--spots 400] [--lr 2e-3]

A model is trained on twelve simulated slides of the usual stain, on half of the genes. Slides of
other patients in the stain of another laboratory follow: 1, 2 or 4 to train on, four to test. Rows
are networks from nothing, from the model (``train --from``), and the model as it is on the genes
that it has. Scores are PCC, mean over genes and test slides; a seed is that of the simulation and
of the training. Writes OUT/warm_start.json.
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
from stflow_graph.io.predictions import read_prediction
from stflow_graph.simulation.cohort import simulate_cohort
from stflow_graph.stages.embed import embed
from stflow_graph.stages.sample import sample
from stflow_graph.stages.train import train
from stflow_graph.stats.metrics import mean_of_defined, pearson_per_gene

ENCODER = "efficientnet_lite0"
N_SOURCE, N_TEST = 12, 4


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


def test_score(model: Path, folder: Path, tests: list[str], genes: list[str]) -> float:
    """Return the mean PCC over the test slides and some genes."""
    from stflow_graph.io.expression import read_expression

    files = [folder.parent / f"embeddings/{folder.name}/{ENCODER}/fp32/{t}.h5" for t in tests]
    scores = []
    for done in sample(model, files, model / "predictions", SampleSettings(), overwrite=True):
        prediction = read_prediction(done.path)
        truth = read_expression(folder / f"adata/{done.slide}.h5ad", genes)
        columns = [prediction.genes.index(gene) for gene in genes]
        measured = np.log1p(truth.counts.toarray())
        scores.append(mean_of_defined(pearson_per_gene(prediction.mean[:, columns], measured)))
    return float(np.mean(scores))


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--spots", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--lr", type=float, default=2e-3, help="of training from the model")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        usual, other = cohorts(options.out, seed, max(options.slides), options.spots)
        common = {"train__epochs": options.epochs, "train__seed": seed}
        source = run(
            usual,
            options.out / f"source{seed}",
            train__folds="all",
            data__gene_list="half.json",
            **common,
        )
        genes = read_gene_list(other / "var_50genes.json")
        shared = read_gene_list(usual / "half.json")
        new = [gene for gene in genes if gene not in shared]
        names = sorted(file.stem for file in (other / "adata").glob("*.h5ad"))
        tests = names[-N_TEST:]
        row = {"seed": seed, "slides": 0, "from": "the model as it is"}
        rows.append({**row, "shared": test_score(source, other, tests, shared)})
        for n in options.slides:
            # fold 1 tests the last four; the others that are not used are in no fold
            used = names[:n] + tests
            write_splits(other / "splits", split_files(used, [0] * n + [1] * N_TEST))
            for start in ("", str(source)):
                label = "model" if start else "nothing"
                rate = {"train__lr": options.lr} if start else {}
                target = run(
                    other,
                    options.out / f"{label}{n}-{seed}",
                    train__folds=[1],
                    train__warm_start=start,
                    **rate,
                    **common,
                )
                rows.append(
                    {
                        "seed": seed,
                        "slides": n,
                        "from": label,
                        "shared": test_score(target, other, tests, shared),
                        "new": test_score(target, other, tests, new),
                    }
                )
                print(rows[-1], flush=True)
    (options.out / "warm_start.json").write_text(json.dumps(rows, indent=1) + "\n")
    for key in dict.fromkeys((row["slides"], row["from"]) for row in rows):
        some = [row for row in rows if (row["slides"], row["from"]) == key]
        means = [
            np.mean([row[part] for row in some]) for part in ("shared", "new") if part in some[0]
        ]
        print(*key, *(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    main()
