"""By how much motions of a slide change a prediction: the published frames against ours.

usage: python benchmarks/symmetry.py [--side 24] [--out OUT] [--quick]

Nothing is trained: weights, embeddings and noise are random, and the graph is made anew from the
moved positions (in pixels, 100 a pitch, not rounded). Prints the largest relative change of the
output over motions (rotations with and without reflection, translation), over permutations of the
spots and over perturbations of a millionth of the pitch; --out writes symmetry.json, lattice.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from stflow_graph.graph import SpatialGraph
from stflow_graph.models.build import Unchanged
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.stflow.denoiser import TransformerDenoiser

F, G, PITCH = 64, 50, 100.0
Predict = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def hexagonal(side: int) -> np.ndarray:
    """Return an exact hexagonal array in pixels, ``[side², 2]``."""
    i, j = np.meshgrid(np.arange(side), np.arange(side))
    return PITCH * np.stack([(i + 0.5 * (j % 2)).ravel(), (j * math.sqrt(3) / 2).ravel()], 1)


def arrays(side: int) -> dict[str, np.ndarray]:
    """Return the arrays to test on."""
    rng = np.random.default_rng(0)
    i, j = np.meshgrid(np.arange(side), np.arange(side))
    grid = PITCH * np.stack([i.ravel(), j.ravel()], 1)
    jitter = 0.1 * PITCH * rng.normal(size=(side**2, 2))
    shaken = hexagonal(side) + jitter
    return {
        "hexagonal": hexagonal(side),
        "square": grid,
        "jittered hexagonal": shaken,
        "line": PITCH * np.stack([np.arange(4.0 * side), np.zeros(4 * side)], 1),
        "duplicates": np.concatenate([shaken, shaken[::3]]),
        "isolated spots": np.concatenate([shaken, [[1e6, 1e6], [-2e6, 3e6]]]),
    }


def models() -> dict[str, tuple[nn.Module, BaseTransform]]:
    """Return denoisers of default size with random weights, and the graph of each."""
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, BaseTransform]] = {
        "STFlow k=8": (TransformerDenoiser(F, G, n_neighbors=8), Unchanged()),
        "STFlow k=6": (TransformerDenoiser(F, G, n_neighbors=6), Unchanged()),
        "ours, additive": (GraphDenoiser(F, G), SpatialGraph(8)),
        "ours, frame averaged": (GraphDenoiser(F, G, conv="frame_averaged"), SpatialGraph(8)),
    }
    for model, _ in made.values():
        model.eval()
        for block in getattr(model, "blocks", []):
            nn.init.ones_(block.gate)  # starts closed: let the global term take part
    return made


def predictor(model: nn.Module, graph: BaseTransform) -> Predict:
    """Return a function of positions and an order of the spots."""

    @torch.inference_mode()
    def predict(pos: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.randn(len(pos), c, generator=generator) for c in (F, G))
        index = torch.arange(len(pos)) if order is None else torch.from_numpy(order)
        data = graph(Data(x=x[index], pos=torch.from_numpy(pos)[index]))
        return model(y[index], torch.tensor([0.5]), data).numpy()

    return predict


def rotation(degrees: float, reflect: bool = False) -> np.ndarray:
    """Return a 2 x 2 rotation, after a reflection if asked for."""
    a = math.radians(degrees)
    turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return turn @ np.diag([1.0, -1.0]) if reflect else turn


def change(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the relative change of an output."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def changes(predict: Predict, pos: np.ndarray, repeats: int) -> dict[str, float]:
    """Return the largest changes over random motions, permutations and perturbations."""
    rng, still = np.random.default_rng(0), predict(pos, None)
    worst = {"motions": 0.0, "permutations": 0.0, "perturbations of 1e-6 pitch": 0.0}
    for repeat in range(repeats):
        turn = rotation(rng.uniform(0, 360), reflect=bool(repeat % 2))
        moved = pos @ turn.T + rng.uniform(-1e4, 1e4, 2)
        order = rng.permutation(len(pos))
        noise = 1e-6 * PITCH * rng.normal(size=pos.shape)
        found = {
            "motions": change(predict(moved, None), still),
            "permutations": change(predict(pos, order), still[order]),
            "perturbations of 1e-6 pitch": change(predict(pos + noise, None), still),
        }
        worst = {key: max(value, found[key]) for key, value in worst.items()}
    return worst


def draw(predictors: dict[str, Predict], side: int, file: Path) -> None:
    """Draw a lattice: change against the angle, and where on the slide a rotation changes what."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    pos, shown = hexagonal(side), 20.0
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    angles = np.linspace(0, 60, 31)[1:]
    for name, predict in predictors.items():
        still = predict(pos, None)
        curve = [change(predict(pos @ rotation(angle).T, None), still) for angle in angles]
        axes[0].semilogy(angles, np.maximum(curve, 1e-8), label=name, marker=".", linewidth=1)
    axes[0].axhline(1e-4, color="0.6", linestyle=":", linewidth=1)
    axes[0].text(angles[0], 1.2e-4, "required: 1e-4", color="0.4", fontsize=8, va="bottom")
    axes[0].set(xlabel="rotation, degrees", ylabel="relative change of the output")
    axes[0].set_title(f"exact hexagonal array, {len(pos)} spots")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.02, 0.1))
    for axis, name in zip(axes[1:], ("STFlow k=8", "ours, additive"), strict=True):
        still = predictors[name](pos, None)
        moved = predictors[name](pos @ rotation(shown).T, None)
        local = np.linalg.norm(moved - still, axis=1) / np.linalg.norm(still, axis=1).mean()
        drawn = axis.scatter(*pos.T, c=np.maximum(local, 1e-8), s=4500 / side**2, norm="log")
        drawn.set_clim(1e-8, 1)
        axis.set_title(f"{name}: change of each spot, {shown:.0f}°")
        axis.set_aspect("equal")
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[1:].tolist(), shrink=0.8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=24, help="spots along an array's side")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    side, repeats = (7, 2) if options.quick else (options.side, options.repeats)
    predictors = {name: predictor(*each) for name, each in models().items()}
    found = {
        (array, name): changes(predict, pos, repeats)
        for array, pos in arrays(side).items()
        for name, predict in predictors.items()
    }
    for kind in next(iter(found.values())):
        table = Table("array", title=f"largest relative change: {kind}")
        for name in predictors:
            table.add_column(name, justify="right")
        for array in arrays(side):
            table.add_row(array, *(f"{found[array, name][kind]:.1e}" for name in predictors))
        Console().print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = [{"array": a, "model": m, **values} for (a, m), values in found.items()]
        (options.out / "symmetry.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        draw(predictors, side, options.out / "lattice.png")


if __name__ == "__main__":
    main()
