"""The report's figures: charts as SVG, which take the page's colours, and maps as PNG."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from stflow_graph.evaluation.page import render
from stflow_graph.io.coords import scale_bar_um

COLOUR_MAP = "viridis"
_MAP_PX = 520  # longest edge of a map's file, twice its size on the page for sharp screens
_MAX_BARS = 80
_TOP, _PLOT, _LEFT = 10, 200, 38


def strip_chart(
    mean: float, interval: tuple[float, float], limit: float, span: tuple[float, float]
) -> Markup:
    """Return an SVG line with a dot at a mean, a bar for its interval and a dashed limit.

    Args:
        mean: position of the dot, NaN for none.
        interval: ends of the bar, NaN for none.
        limit: position of the dashed line, NaN for none.
        span: values at the left and right edge of the chart.
    """

    def x(value: float) -> float:
        return 5 + 160 * (np.clip(value, *span) - span[0]) / (span[1] - span[0])

    low, high = map(x, interval)
    values = {"zero": x(0), "mean": x(mean), "low": low, "high": high, "limit": x(limit)}
    return render("strip.svg.jinja", **values)


@dataclasses.dataclass(frozen=True)
class Series:
    """A score per gene.

    Attributes:
        name: of the model, baseline or reference.
        style: class of its marks in the page's style sheet.
        values: ``[G]``, NaN where undefined.
    """

    name: str
    style: str
    values: np.ndarray


def gene_chart(
    genes: Sequence[str], bars: Series, dots: Sequence[Series], limit: Series, label: str
) -> Markup:
    """Return an SVG bar chart of a score per gene, best first.

    Args:
        genes: G names.
        bars: determines the order; genes without this score are omitted.
        dots: drawn beside the bars.
        limit: drawn as a line across each bar.
        label: description for screen readers.
    """
    order = [int(i) for i in np.argsort(-bars.values, kind="stable") if np.isfinite(bars.values[i])]
    if len(order) > _MAX_BARS:
        order = [*order[: _MAX_BARS // 2], *order[-_MAX_BARS // 2 :]]
    values = np.concatenate([series.values[order] for series in (bars, limit, *dots)])
    values = values[np.isfinite(values)]
    low = float(np.floor(5 * values.min(initial=0.0)) / 5)
    high = float(np.ceil(5 * values.max(initial=0.2)) / 5)
    step = min(40.0, 1060 / max(len(order), 1))

    def y(value: float) -> float:
        return _TOP + _PLOT * (high - value) / (high - low)

    return render(
        "genes.svg.jinja",
        label=label,
        width=_LEFT + step * len(order) + 8,
        step=step,
        left=_LEFT,
        top=_TOP,
        plot=_PLOT,
        bars=bars,
        limit=limit,
        ticks=[(tick / 5, y(tick / 5)) for tick in range(round(5 * low), round(5 * high) + 1)],
        genes=[
            {
                "name": genes[i],
                "hint": ", ".join(f"{s.name} {s.values[i]:.2f}" for s in (bars, *dots, limit)),
                "x": _LEFT + step * (place + 0.5),
                "bar": sorted((y(0), y(bars.values[i]))),
                "limit": y(limit.values[i]),
                "dots": [(dot.style, y(dot.values[i])) for dot in dots],
            }
            for place, i in enumerate(order)
        ],
    )


@dataclasses.dataclass(frozen=True)
class ScaleLine:
    """Coverage of an interval by size of region.

    Attributes:
        name: of the model, and what is covered.
        style: class of its marks in the page's style sheet.
        dashed: whether its line is.
        regions: size of region to the coverage on each slide.
    """

    name: str
    style: str
    dashed: bool
    regions: dict[str, np.ndarray]


def scale_chart(lines: Sequence[ScaleLine], nominal: float, label: str) -> Markup:
    """Return an SVG chart of coverage by size of region.

    Args:
        lines: with the means over slides; each slide is a dot.
        nominal: level that calibrated samples would have, a dashed line.
        label: description for screen readers.
    """
    names = list(dict.fromkeys(region for line in lines for region in line.regions))
    step = 96

    def y(value: float) -> float:
        return _TOP + _PLOT * (1 - value)

    def drawn(line: ScaleLine) -> dict[str, Any]:
        at = {region: _LEFT + step * (names.index(region) + 0.5) for region in line.regions}
        means = {region: float(values.mean()) for region, values in line.regions.items()}
        return {
            "name": line.name,
            "style": line.style,
            "dashed": line.dashed,
            "hint": ", ".join(f"{region} {mean:.0%}" for region, mean in means.items()),
            "points": [(at[region], y(mean)) for region, mean in means.items()],
            "dots": [(at[r], y(float(v))) for r, values in line.regions.items() for v in values],
        }

    return render(
        "scales.svg.jinja",
        label=label,
        width=_LEFT + step * len(names) + 8,
        left=_LEFT,
        top=_TOP,
        plot=_PLOT,
        ticks=[(tick / 5, y(tick / 5)) for tick in range(6)],
        nominal=y(nominal),
        regions=[(_LEFT + step * (i + 0.5), name) for i, name in enumerate(names)],
        lines=[drawn(line) for line in lines],
    )


def colour_scale() -> Markup:
    """Return the maps' colours as a CSS gradient, lowest value first."""
    colours = ", ".join(to_hex(c) for c in colormaps[COLOUR_MAP](np.linspace(0, 1, 12)))
    return Markup(f"linear-gradient(to right, {colours})")


@dataclasses.dataclass(frozen=True)
class MapFrame:
    """Geometry shared by all maps of a slide.

    Attributes:
        coords: ``[N, 2]`` px (x, y).
        pitch: distance of neighbouring spots and diameter of their discs, px.
        box: left, top, right and bottom edge, px.
        bar_um: length of the scale bar, µm, None if the size of a pixel is unknown.
        bar_px: the same in px.
    """

    coords: np.ndarray
    pitch: float
    box: tuple[float, float, float, float]
    bar_um: int | None
    bar_px: float

    @classmethod
    def of(cls, coords: np.ndarray, um_per_px: float | None) -> MapFrame:
        """Fit a frame around the spots ``[N, 2]``."""
        distance = cKDTree(coords).query(coords, k=[2])[0].reshape(-1)
        apart = distance[np.isfinite(distance) & (distance > 0)]
        pitch = float(np.median(apart)) if len(apart) else 1.0
        low, high = coords.min(axis=0) - pitch, coords.max(axis=0) + pitch
        bar_um = scale_bar_um(coords, um_per_px) if um_per_px else None
        bar_px = 0.0
        if bar_um is not None and um_per_px:
            bar_px = bar_um / um_per_px
            high[1] += 0.05 * max(high - low)
        return cls(coords, pitch, (low[0], low[1], high[0], high[1]), bar_um, bar_px)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the map's file, px."""
        extent = np.array([self.box[2] - self.box[0], self.box[3] - self.box[1]])
        width, height = np.maximum(np.rint(_MAP_PX * extent / extent.max()), 8).astype(int)
        return int(width), int(height)


def map_png(frame: MapFrame, values: np.ndarray, limits: tuple[float, float]) -> bytes:
    """Return a map of a slide as PNG: a disc per spot, y downwards, transparent background.

    Args:
        frame: from :meth:`MapFrame.of`.
        values: ``[N]``.
        limits: values of the first and the last colour; values beyond are clipped.
    """

    def paint(discs: EllipseCollection) -> None:
        discs.set_cmap(COLOUR_MAP)
        discs.set_array(np.asarray(values, dtype=np.float64))
        discs.set_clim(*limits)

    return _discs_png(frame, 0.94, paint)


def category_png(
    frame: MapFrame, labels: np.ndarray, colours: Sequence[str], width: float = 0.94
) -> bytes:
    """Return a map of categories as PNG, as :func:`map_png` of values.

    Args:
        frame: from :meth:`MapFrame.of`.
        labels: ``[N]`` from 0 on.
        colours: of the categories.
        width: of a disc, as a fraction of the distance of neighbouring spots.
    """
    rgba = to_rgba_array(list(colours))[np.asarray(labels)]
    return _discs_png(frame, width, lambda discs: discs.set_facecolor(rgba))


def _discs_png(
    frame: MapFrame, width: float, paint: Callable[[EllipseCollection], object]
) -> bytes:
    """Return a disc per spot, whose colours ``paint`` sets, and the scale bar."""
    (columns, rows), (left, top, right, bottom) = frame.size, frame.box
    figure = Figure(figsize=(columns / 100, rows / 100), dpi=100)
    figure.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    # with very many spots, discs smaller than a pixel would vanish
    diameter = np.full(len(frame.coords), max(width * frame.pitch, (right - left) / columns))
    discs = EllipseCollection(
        diameter,
        diameter,
        np.zeros(len(diameter)),
        units="xy",
        offsets=frame.coords,
        offset_transform=axes.transData,
        linewidths=0,
    )
    paint(discs)
    axes.add_collection(discs)
    if frame.bar_um is not None:
        y, start = bottom - 0.02 * (bottom - top), left + 0.3 * frame.pitch
        axes.plot([start, start + frame.bar_px], [y, y], color="#6b7280", linewidth=3)
    canvas.draw()
    # 256 colours suffice for one scale with antialiasing, in a third of the bytes
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    file = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(file, format="png")
    return file.getvalue()
