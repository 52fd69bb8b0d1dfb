from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from stflow_graph.evaluation.charts import (
    MapFrame,
    ScaleLine,
    Series,
    colour_scale,
    gene_chart,
    map_png,
    scale_chart,
    strip_chart,
)

PITCH = 100.0


def grid(columns, rows):
    x, y = (g.ravel() for g in np.meshgrid(np.arange(columns), np.arange(rows)))
    return PITCH * np.stack([x, y], axis=1).astype(float)


def pixels(frame, values, limits):
    image = Image.open(io.BytesIO(map_png(frame, values, limits)))
    assert image.size == frame.size
    return np.asarray(image.convert("RGBA")).astype(int)


def at(image, frame, xy):
    """The colour at a place of the slide."""
    left, top, right, bottom = frame.box
    column = (xy[0] - left) / (right - left) * image.shape[1]
    row = (xy[1] - top) / (bottom - top) * image.shape[0]
    return image[int(row), int(column)]


def test_every_spot_has_its_colour_where_it_lies_with_y_downwards():
    coords = grid(6, 4)
    values = np.random.default_rng(0).uniform(size=24)
    frame = MapFrame.of(coords, None)
    image = pixels(frame, values, (0.0, 1.0))
    for xy, value in zip(coords, values, strict=True):
        expected = np.array(colormaps["viridis"](value)) * 255
        np.testing.assert_allclose(at(image, frame, xy), expected, atol=20)
    # between four spots there is nothing
    assert at(image, frame, (50, 50))[3] == 0


def test_values_beyond_the_limits_take_the_last_colours():
    frame = MapFrame.of(grid(3, 3), None)
    inside = pixels(frame, np.repeat([0.0, 0.5, 1.0], 3), (0.0, 1.0))
    beyond = pixels(frame, np.repeat([-9.0, 0.5, 9.0], 3), (0.0, 1.0))
    np.testing.assert_array_equal(inside, beyond)


@pytest.mark.parametrize(("columns", "rows"), [(12, 4), (4, 12), (9, 9)])
def test_spots_are_round_and_as_wide_as_their_pitch(columns, rows):
    frame = MapFrame.of(grid(columns, rows), None)
    image = pixels(frame, np.ones(columns * rows), (0.0, 1.0))
    per_px = (frame.box[2] - frame.box[0]) / image.shape[1]
    share = (image[..., 3] > 127).sum() * per_px**2 / (columns * rows * PITCH**2)
    assert share == pytest.approx(np.pi / 4 * 0.94**2, abs=0.04)
    assert image.shape[0] / image.shape[1] == pytest.approx((rows + 1) / (columns + 1), abs=0.02)


@pytest.mark.parametrize(
    "coords",
    [grid(5, 1), grid(1, 5), np.zeros((3, 2)), grid(2, 1)[:1], np.repeat(grid(2, 2), 2, 0)],
)
def test_odd_slides_have_a_map(coords):
    frame = MapFrame.of(coords, 0.5)
    image = pixels(frame, np.ones(len(coords)), (0.0, 1.0))
    assert (image[..., 3] > 127).any()


def test_spots_smaller_than_a_pixel_do_not_vanish():
    frame = MapFrame.of(grid(1500, 3), None)
    image = pixels(frame, np.ones(4500), (0.0, 1.0))
    row = image[image.shape[0] // 2]
    assert (row[10:-10, 3] > 100).mean() > 0.95


@pytest.mark.parametrize("um_per_px", [0.05, 0.5, 3.0])
def test_the_scale_bar_is_a_round_length_that_fits(um_per_px):
    frame = MapFrame.of(grid(10, 10), um_per_px)
    assert frame.bar_px * um_per_px == pytest.approx(frame.bar_um)
    assert 0.08 < frame.bar_px / (frame.box[2] - frame.box[0]) <= 0.3
    assert str(frame.bar_um)[0] in "125"
    assert MapFrame.of(grid(10, 10), None).bar_um is None


def series(values, style="m0"):
    return Series(style, style, np.asarray(values, dtype=float))


def rects(svg):
    root = ET.fromstring(svg)
    result = []
    for group in root.findall("g"):
        rect = group.find("rect")
        result.append((group.find("title").text, float(rect.get("y")), float(rect.get("height"))))
    return root, result


def test_bars_are_sorted_proportional_and_hang_below_zero_if_negative():
    genes, values = ["a", "b", "c", "d"], [0.2, np.nan, 0.8, -0.4]
    ceiling = series([0.9, 0.9, np.nan, 0.5], "limit")
    svg = gene_chart(genes, series(values), [series([0.1, 0, np.nan, 0], "base")], ceiling, "x")
    root, bars = rects(svg)
    assert [title[0] for title, _, _ in bars] == ["c", "a", "d"]
    heights = [height for _, _, height in bars]
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.3)
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.3)
    zero = bars[0][1] + bars[0][2]
    assert bars[1][1] + bars[1][2] == pytest.approx(zero, abs=0.2)
    assert bars[2][1] == pytest.approx(zero, abs=0.2)
    assert "base 0.10" in bars[1][0]
    assert [len(g.findall("circle")) for g in root.findall("g")] == [0, 1, 1]
    assert [len(g.findall("line")) for g in root.findall("g")] == [0, 1, 1]
    assert (root.get("role"), root.get("aria-label")) == ("img", "x")


def test_many_genes_show_the_best_and_the_worst():
    values = np.linspace(0, 1, 500)
    genes = [f"g{i}" for i in range(500)]
    _, bars = rects(gene_chart(genes, series(values), [], series(values, "limit"), "x"))
    assert [title.split(":")[0] for title, _, _ in bars] == [
        *(f"g{i}" for i in range(499, 459, -1)),
        *(f"g{i}" for i in range(39, -1, -1)),
    ]


def test_names_are_escaped_and_long_ones_cut():
    svg = gene_chart(["<b>&" + "x" * 30], series([0.5]), [], series([0.5], "limit"), '"<i>')
    root, bars = rects(svg)
    assert bars[0][0].startswith("<b>&xxx")
    assert root.findall("text")[-1].text == "<b>&xxxxxxxxx…"
    assert root.get("aria-label") == '"<i>'


def test_the_strip_places_its_marks_in_the_order_of_their_values():
    root = ET.fromstring(strip_chart(0.4, (0.3, 0.5), 0.9, (-0.1, 1.0)))
    axis, limit, span = (
        next(e for e in root.findall("line") if e.get("class") == name)
        for name in ("axis", "limit", "span")
    )
    dot = root.find("circle")
    places = [axis.get("x1"), span.get("x1"), dot.get("cx"), span.get("x2"), limit.get("x1")]
    assert places == sorted(places, key=float)
    empty = ET.fromstring(strip_chart(np.nan, (np.nan, np.nan), np.nan, (0.0, 1.0)))
    assert len(empty) == 1


def test_coverage_by_scale_has_a_line_through_the_means_and_a_dot_per_slide():
    regions = {"1 spot": np.array([0.8, 0.6]), "slide": np.array([0.2])}
    lines = [
        ScaleLine("<graph>", "m0", False, regions),
        ScaleLine("<graph>, centred", "m0", True, {"1 spot": np.array([0.8])}),
    ]
    root = ET.fromstring(scale_chart(lines, 0.8, "x"))
    whole, centred = root.findall("g")
    assert whole.find("title").text == "<graph>: 1 spot 70%, slide 20%"
    points = [tuple(map(float, p.split(","))) for p in whole.find("polyline").get("points").split()]
    y = {t.text: float(t.get("y")) - 3.5 for t in root.findall("text") if "%" in t.text}
    scale = (y["20%"] - y["80%"]) / 0.6
    assert points[0][1] == pytest.approx(y["80%"] + 0.1 * scale, abs=0.2)
    assert points[1][1] == pytest.approx(y["20%"], abs=0.2)
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in whole.findall("circle")]
    expected = [(points[0][0], y[level]) for level in ("80%", "60%")] + [points[1]]
    np.testing.assert_allclose(dots, expected, atol=0.2)
    nominal = next(e for e in root.findall("line") if e.get("class") == "limit")
    assert float(nominal.get("y1")) == pytest.approx(y["80%"], abs=0.2)
    places = {t.text: float(t.get("x")) for t in root.findall("text") if t.get("class") == "region"}
    assert places == {"1 spot": points[0][0], "slide": points[1][0]}
    assert "dashed" in centred.find("polyline").get("class")


def test_the_scale_runs_through_the_maps_colours():
    colours = re.findall(r"#[0-9a-f]{6}", colour_scale())
    assert (colours[0], colours[-1]) == ("#440154", "#fde725")
