"""The report's figures: charts as SVG, which take the page's colours, and maps as PNG."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

COLOUR_MAP = "viridis"
_MAP_PX = 520  # longest edge of a map's file; the page shows it at half that, for sharp screens
_MOST_BARS = 80
_LABEL = 14  # characters of a gene's name that fit below its bar
_TOP, _PLOT, _LEFT, _BELOW = 10, 200, 38, 80
_BAR_UM = np.array([10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000])


def strip_chart(
    mean: float, interval: tuple[float, float], limit: float, span: tuple[float, float]
) -> str:
    """Return an SVG line with a dot at a mean, a bar for its interval and a dashed limit.

    Args:
        mean: where the dot is; there is none for NaN.
        interval: ends of the bar, NaN for none.
        limit: where the dashed line is, NaN for none.
        span: values at the chart's left and right edge.
    """
    width, height = 170, 16

    def x(value: float) -> str:
        share = (min(max(value, span[0]), span[1]) - span[0]) / (span[1] - span[0])
        return f"{5 + (width - 10) * share:.1f}"

    marks = f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{height}"/>'
    if np.isfinite(limit):
        marks += f'<line class="limit" x1="{x(limit)}" x2="{x(limit)}" y1="0" y2="{height}"/>'
    if np.isfinite(interval).all():
        marks += f'<line class="span" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="8" y2="8"/>'
    if np.isfinite(mean):
        marks += f'<circle cx="{x(mean)}" cy="8" r="4"/>'
    return f'<svg class="strip" viewBox="0 0 {width} {height}" aria-hidden="true">{marks}</svg>'


@dataclasses.dataclass(frozen=True)
class Series:
    """A score per gene.

    Attributes:
        name: whose score.
        style: class of its marks in the page's style sheet.
        values: ``[G]``, NaN where not defined.
    """

    name: str
    style: str
    values: np.ndarray


def gene_chart(
    genes: Sequence[str], bars: Series, dots: Sequence[Series], limit: Series, label: str
) -> str:
    """Return an SVG bar chart of a score per gene, best first.

    Args:
        genes: G names.
        bars: decides the order; genes without this score are left out.
        dots: drawn beside the bars.
        limit: drawn as a line across each bar.
        label: what the chart shows, for who cannot see it.
    """
    order = [int(i) for i in np.argsort(-bars.values, kind="stable") if np.isfinite(bars.values[i])]
    if len(order) > _MOST_BARS:
        order = [*order[: _MOST_BARS // 2], *order[-_MOST_BARS // 2 :]]
    known = np.concatenate([each.values[order] for each in (bars, limit, *dots)])
    known = known[np.isfinite(known)]
    low = float(np.floor(5 * known.min(initial=0.0)) / 5)
    high = float(np.ceil(5 * known.max(initial=0.2)) / 5)
    step = min(40.0, 1060 / max(len(order), 1))
    width = _LEFT + step * len(order) + 8
    parts = [_grid(low, high, width)]
    for place, i in enumerate(order):
        middle = _LEFT + step * (place + 0.5)
        hint = ", ".join(f"{each.name} {each.values[i]:.2f}" for each in (bars, *dots, limit))
        marks = _marks(i, middle, step, (low, high), bars, dots, limit)
        parts.append(f"<g><title>{escape(f'{genes[i]}: {hint}')}</title>{marks}</g>")
        name = genes[i] if len(genes[i]) <= _LABEL else genes[i][: _LABEL - 1] + "…"
        turned = f"translate({middle + 4:.1f},{_TOP + _PLOT + 12}) rotate(-58)"
        parts.append(f'<text class="gene" transform="{turned}">{escape(name)}</text>')
    return (
        f'<svg class="genes" viewBox="0 0 {width:.0f} {_TOP + _PLOT + _BELOW}" '
        f'style="width:{width:.0f}px" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _height(value: float, span: tuple[float, float]) -> float:
    return _TOP + _PLOT * (span[1] - value) / (span[1] - span[0])


def _grid(low: float, high: float, width: float) -> str:
    lines = ""
    for tick in np.arange(round(5 * low), round(5 * high) + 1) / 5:
        kind, y = "axis" if tick == 0 else "grid", _height(tick, (low, high))
        lines += f'<line class="{kind}" x1="{_LEFT}" x2="{width - 8:.0f}" y1="{y}" y2="{y}"/>'
        text = f"{tick:.1f}".replace("-", "−")
        lines += f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5}">{text}</text>'
    return lines


def _marks(
    i: int,
    middle: float,
    step: float,
    span: tuple[float, float],
    bars: Series,
    dots: Sequence[Series],
    limit: Series,
) -> str:
    """Return the bar, dots and limit of gene ``i`` around x = ``middle``."""
    ends = sorted((_height(0, span), _height(bars.values[i], span)))
    width = 0.64 * step
    marks = (
        f'<rect class="{bars.style}" x="{middle - width / 2:.1f}" y="{ends[0]:.1f}" '
        f'width="{width:.1f}" height="{ends[1] - ends[0]:.1f}"/>'
    )
    if np.isfinite(limit.values[i]):
        y, x = _height(limit.values[i], span), (middle - 0.42 * step, middle + 0.42 * step)
        marks += f'<line class="{limit.style}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y:.1f}" '
        marks += f'y2="{y:.1f}"/>'
    for dot in dots:
        if np.isfinite(dot.values[i]):
            y = _height(dot.values[i], span)
            marks += f'<circle class="{dot.style}" cx="{middle:.1f}" cy="{y:.1f}" r="3.2"/>'
    return marks


def colour_scale() -> str:
    """Return the maps' colours as a CSS gradient, lowest value first."""
    colours = ", ".join(to_hex(c) for c in colormaps[COLOUR_MAP](np.linspace(0, 1, 12)))
    return f"linear-gradient(to right, {colours})"


@dataclasses.dataclass(frozen=True)
class MapFrame:
    """What all maps of a slide share.

    Attributes:
        coords: ``[N, 2]`` px (x, y).
        pitch: distance of neighbouring spots, px; they are drawn as wide.
        box: left, top, right and bottom edge, px.
        bar_um: length of the scale bar, µm, None where px have no length.
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
        bar_um, bar_px = None, 0.0
        if um_per_px:
            fitting = _BAR_UM[_BAR_UM <= 0.3 * (high[0] - low[0]) * um_per_px]
            if len(fitting):
                bar_um = int(fitting[-1])
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
    """Return a map of a slide as PNG: a disc a spot, y downwards as in the image, no background.

    Args:
        frame: from :meth:`MapFrame.of`.
        values: ``[N]``.
        limits: values of the first and the last colour; values beyond take these.
    """
    (width, height), (left, top, right, bottom) = frame.size, frame.box
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    # on slides of very many spots a disc would be smaller than a pixel and vanish
    diameter = np.full(len(values), max(0.94 * frame.pitch, (right - left) / width))
    discs = EllipseCollection(
        diameter,
        diameter,
        np.zeros(len(values)),
        units="xy",
        offsets=frame.coords,
        offset_transform=axes.transData,
        cmap=COLOUR_MAP,
        linewidths=0,
    )
    discs.set_array(np.asarray(values, dtype=np.float64))
    discs.set_clim(*limits)
    axes.add_collection(discs)
    if frame.bar_um is not None:
        y, start = bottom - 0.02 * (bottom - top), left + 0.3 * frame.pitch
        axes.plot([start, start + frame.bar_px], [y, y], color="#6b7280", linewidth=3)
    canvas.draw()
    # 256 colours do for one scale and its soft edges, in a third of the bytes
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    file = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(file, format="png")
    return file.getvalue()
