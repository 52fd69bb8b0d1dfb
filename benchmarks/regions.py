"""Do samples hold together: regions, neighbours and slides, by how they are drawn.

usage: python benchmarks/regions.py --root ROOT --embeddings EMB --out OUT [--targets log1p ...]
           [--models graph "spot flow" transformer ...] [--seeds 5] [--folds 0 1 2] [--quick]

Trains what is not there (in the folders of ``accuracy.py``; other models than the default with seed
0 only, but runs of more seeds that are there are scored), draws 32 samples of every test slide and
scores them as joint draws. Of the default, whose samples come from a random field, simpler
fields are shown beside it. Prints a table a slide, means over seeds, with the difference of the
energy score from the default's and its 95% interval (bootstrap over 24 parts of the slide), and
writes OUT/regions.json and draws the coverage as OUT/regions.png.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from stflow_graph.config import load_config
from stflow_graph.data.load import load_slide
from stflow_graph.data.slide import Slide
from stflow_graph.graph.tiles import split_in_space
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.io.predictions import prediction_of
from stflow_graph.models.checkpoint import Checkpoint, load_checkpoint
from stflow_graph.nn.expression_field import ExpressionField
from stflow_graph.stages.train import train
from stflow_graph.stats import ensembles, metrics, scales

N_SAMPLES, N_PARTS, N_RESAMPLES = 32, 24, 2000
DEFAULT = "graph"
SIZES = ("1", "9", "25", "64", "slide")


def independent(field: ExpressionField) -> None:
    """Draw spots independently: a regression with fitted noise."""
    field.smooth_variances.zero_()
    field.smooth_own.zero_()


def levels_only(field: ExpressionField) -> None:
    """Leave the slide's levels as all that spots share."""
    field.smooth_variances[..., :-1] = 0


def gaussian(field: ExpressionField) -> None:
    """Draw normal residuals of one deviation a gene instead of the genes' distributions."""
    middle = field.knots.size(1) // 2
    spread = field.ratios[:, middle].std(-1, keepdim=True) * field.knots[:, middle, None]
    scores = torch.linspace(-1, 1, field.ratios.size(2))
    deviations = spread / scores.std() * scores
    field.ratios.copy_((1 + deviations[:, None] / field.knots[..., None]).clamp(min=0))


FIELDS: dict[str, Callable[[ExpressionField], None]] = {
    "independent spots": independent,
    "levels, then independent spots": levels_only,
    "normal residuals": gaussian,
}


def samples_of(checkpoint: Checkpoint, slide: Slide, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean ``[N, G]`` and samples ``[S, N, G]`` of a slide."""
    settings = SampleSettings(N_SAMPLES, seed=seed, device="cpu")
    prediction = prediction_of(SlideModel(checkpoint).predict(slide, settings), slide.name)
    assert prediction.samples is not None
    return prediction.mean, prediction.samples


def measure(mean: np.ndarray, samples: np.ndarray, slide: Slide) -> dict[str, Any]:
    """Return the scores of a slide's samples; the energy score of every region too."""
    truth, coords = slide.truth, slide.coords
    near = scales.region_mean(coords, min(9, len(truth)))
    energy = scales.region_energy_scores(samples, truth, near)
    weights = metrics.neighbour_mean(coords)
    moran = scales.residual_moran(samples, mean, truth, weights)
    found: dict[str, Any] = {
        "energy, 9 spots": float(energy.mean()),
        "variogram": scales.variogram_score(samples, truth, near),
        "CRPS": float(ensembles.crps_per_gene(samples, truth).mean()),
        "Moran": moran[0],
        "measured": moran[1],
        "gene-gene": scales.sample_gene_distance(samples, truth),
    }
    for part in scales.coverage_by_scale(samples, truth, coords):
        size = "slide" if part.whole else str(part.spots)
        genes = ", all genes" if part.gene_mean else ""
        found[f"raw {size}{genes}"] = part.raw[1].covered
        if part.centred:
            found[f"centred {size}{genes}"] = part.centred[1].covered
    return {"scores": found, "energy": energy, "coords": coords}


def run(model: str, target: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return ``{row: {slide: measures}}`` of a model's folds, trained if they are not there."""
    settings = accuracy.settings_of(model, target, seed, options)
    rows: dict[str, Any] = {}
    for result in train(
        load_config(None, settings), accuracy.folder_of(model, target, seed, options)
    ):
        checkpoint = load_checkpoint(result.folder / "checkpoint")
        variants = {model: checkpoint}
        for name, simplify in FIELDS.items() if checkpoint.field is not None else ():
            field = copy.deepcopy(checkpoint.field)
            assert field is not None
            simplify(field)
            variants[name] = dataclasses.replace(checkpoint, field=field)
        for file in accuracy.embedding_files(list(result.test_pearson), options):
            truth = options.root / "adata" / f"{file.stem}.h5ad"
            slide = load_slide(file, truth, checkpoint.genes, target=target)
            for name, variant in variants.items():
                measured = measure(*samples_of(variant, slide, seed), slide)
                rows.setdefault(name, {})[slide.name] = measured
    return rows


def difference(
    rows: list[np.ndarray], default: list[np.ndarray], coords: np.ndarray
) -> list[float]:
    """Return the mean of a row's energy score less the default's, and its 95% interval."""
    by_spot = np.mean(rows, axis=0) - np.mean(default, axis=0)
    parts = split_in_space(coords, max(1, len(coords) // N_PARTS))
    sums = np.array([by_spot[part].sum() for part in parts])
    sizes = np.array([len(part) for part in parts])
    chosen = np.random.default_rng(0).integers(len(parts), size=(N_RESAMPLES, len(parts)))
    resampled = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    return [float(by_spot.mean()), *np.quantile(resampled, [0.025, 0.975]).tolist()]


def table_of(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """Return the table of a slide: a row a way of drawing."""
    columns = [c for c in next(iter(rows.values()))["scores"] if "all genes" not in c]
    table = Table("", *columns, "energy less the default's", title=title)
    for name, row in rows.items():
        cells = [f"{row['scores'][column]:.3f}" for column in columns]
        change = "{:+.4f} ({:+.4f} to {:+.4f})".format(*row["difference"])
        table.add_row(name, *cells, "" if name == DEFAULT else change)
    return table


def summarise(found: dict[str, dict[int, dict[str, Any]]], slide: str) -> dict[str, dict[str, Any]]:
    """Return the means over seeds of every row of a slide."""
    rows: dict[str, dict[str, Any]] = {}
    for name, seeds in found.items():
        here = [of_seed[slide] for of_seed in seeds.values()]
        default = [found[DEFAULT][seed][slide] for seed in seeds]
        energies = [[measured["energy"] for measured in part] for part in (here, default)]
        keys = here[0]["scores"]
        rows[name] = {
            "scores": {key: float(np.mean([h["scores"][key] for h in here])) for key in keys},
            "seeds": len(here),
            "difference": difference(*energies, default[0]["coords"]),
        }
    return rows


def draw(result: dict[str, dict[str, dict[str, Any]]], file: Path) -> None:
    """Draw the coverage of 80% intervals against the size of regions.

    A row of panels a target, centred and raw; a column a slide; a line a way of drawing.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [(target, kind) for target in result for kind in ("centred", "raw")]
    slides = list(next(iter(result.values())))
    size = (3.2 * len(slides) + 0.4, 2.3 * len(kinds) + 0.5)
    figure, axes = plt.subplots(
        len(kinds), len(slides), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for row, (target, kind) in zip(axes, kinds, strict=True):
        for axis, slide in zip(row, slides, strict=True):
            for name, found in result[target][slide].items():
                sizes = [s for s in SIZES if f"{kind} {s}" in found["scores"]]
                covered = [found["scores"][f"{kind} {s}"] for s in sizes]
                width = 2.4 if name == DEFAULT else 1.2
                axis.plot(
                    [SIZES.index(s) for s in sizes], covered, "o-", label=name, lw=width, ms=3
                )
            axis.axhline(0.8, color="k", linewidth=0.8, linestyle=":")
            axis.set(xticks=range(len(SIZES)), xticklabels=SIZES, ylim=(-0.03, 1.03))
            axis.set_title(f"{slide}, {target}, {kind}", fontsize=8)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel("covered", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("spots in the mean", fontsize=8)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / size[1], 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the tables, write JSON and PNG."""
    options, console = accuracy.parse(__doc__), Console(width=220)
    result: dict[str, Any] = {}
    for target in options.targets:
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in range(options.seeds):
            for model in [DEFAULT, *(m for m in options.models if m != DEFAULT)]:
                there = accuracy.folder_of(model, target, seed, options).exists()
                drawn = accuracy.MODELS[model].get("flow.kind") != "none"
                if drawn and (model == DEFAULT or seed == 0 or there):
                    for name, slides in run(model, target, seed, options).items():
                        found.setdefault(name, {})[seed] = slides
        result[target] = {slide: summarise(found, slide) for slide in found[DEFAULT][0]}
        for slide, rows in result[target].items():
            console.print(table_of(f"{slide}, {target}", rows))
    file = Path(options.out) / "regions.json"
    file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    draw(result, file.with_suffix(".png"))
    console.print(f"{file} and {file.with_suffix('.png').name} written")


if __name__ == "__main__":
    main()
