"""How the cost of a slide grows with its spots: exponents fitted to what speed.py measured.

usage: python benchmarks/scaling.py SPEED.json [...] --out OUT [--from 3000]

The exponent is the slope of log seconds against log spots, from --from spots on; 1 is linear. Of
several files, which may be of different sizes of slides on one machine, a size that two of them
have counts twice. Writes OUT/scaling.json and OUT/scaling.png, where lines are the fits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from contenders import CONTENDERS
from rich.console import Console
from rich.table import Table

PARTS = ("call", "sampling", "training step")
# (spots, seconds) of every size, by part and denoiser
Points = dict[str, dict[str, list[tuple[int, float]]]]


def read(files: list[Path]) -> Points:
    """Return the measured points of all files."""
    points: Points = {part: {name: [] for name in CONTENDERS} for part in PARTS}
    for file in files:
        for n, rows in json.loads(file.read_text(encoding="utf-8"))["seconds"].items():
            for name, parts in rows.items():
                for part in PARTS:
                    if part in parts:
                        points[part][name].append((int(n), parts[part]))
    return points


def fit(points: list[tuple[int, float]], start: int) -> tuple[float, float] | None:
    """Return exponent and log factor of the cost, None where fewer than two sizes are known."""
    chosen = [point for point in points if point[0] >= start]
    if len({n for n, _ in chosen}) < 2:
        return None
    spots, seconds = np.log(np.array(chosen, dtype=float)).T
    slope, intercept = np.polyfit(spots, seconds, 1)
    return float(slope), float(intercept)


def show(points: Points, start: int) -> tuple[Table, dict[str, dict[str, float]]]:
    """Return the exponents as a table and as ``{denoiser: {part: exponent}}``."""
    table = Table(f"exponent of cost, from {start:,} spots", *PARTS)
    found: dict[str, dict[str, float]] = {}
    for name in CONTENDERS:
        fits = {part: fit(points[part][name], start) for part in PARTS}
        known = {part: each[0] for part, each in fits.items() if each is not None}
        if known:
            found[name] = known
            table.add_row(name, *(f"{known[p]:.2f}" if p in known else "" for p in PARTS))
    return table, found


def draw(points: Points, start: int, file: Path) -> None:
    """Draw a panel a part: measured seconds a spot as dots, the fits as lines."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawn = [part for part in PARTS if any(points[part].values())]
    size = (4.0 * len(drawn), 4.4)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "frameon": False}
    figure, axes = plt.subplots(1, len(drawn), figsize=size, layout="constrained", squeeze=False)
    for axis, part in zip(axes[0], drawn, strict=True):
        for i, name in enumerate(CONTENDERS):
            measured = points[part][name]
            if not measured:
                continue
            spots, seconds = np.array(sorted(measured), dtype=float).T
            axis.plot(spots, 1e6 * seconds / spots, "o", markersize=4, color=f"C{i}")
            found, label = fit(measured, start), name
            if found is not None:
                ends = np.array([max(start, spots.min()), spots.max()])
                line = np.exp(found[1]) * ends ** (found[0] - 1)
                label = f"{name}: {found[0]:.2f}"
                axis.plot(ends, 1e6 * line, "-", color=f"C{i}", label=label)
            else:
                axis.plot([], [], "o", color=f"C{i}", markersize=4, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("spots of the slide")
        axis.set_ylabel(f"µs a spot, {part}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, title="exponent", title_fontsize=7, **below)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Fit, print the table, write JSON and PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="SPEED.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="start", type=int, default=3_000)
    options = parser.parse_args()
    points = read(options.files)
    table, found = show(points, options.start)
    if not found:
        parser.error(f"no denoiser was measured at two sizes from {options.start:,} spots on")
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"from": options.start, "exponents": found}, indent=1)
    (options.out / "scaling.json").write_text(text, encoding="utf-8")
    draw(points, options.start, options.out / "scaling.png")
    console = Console(width=120)
    console.print(table)
    console.print(f"{options.out / 'scaling.json'} and .png written")


if __name__ == "__main__":
    main()
