from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from predicted import predicted

from stflow_graph.evaluation import report
from stflow_graph.evaluation.page import number
from stflow_graph.evaluation.report import render_report
from stflow_graph.io.expression import read_expression, write_expression
from stflow_graph.stages.evaluate import evaluate

HOSTILE = ['<script>alert("1")</script>', "'&<>\"", "</title>", "a" * 300, "$x$", "é\u202e"]
_VOID = {"meta", "img", "br", "line", "circle", "rect"}


class Page(HTMLParser):
    """Collects tags and text, and checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        assert not self.open
        self.text = " ".join(self.text.split())  # as a browser shows it

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def run(cohort, tmp_path):
    """Return a function that evaluates predictions of slides A and B."""

    def evaluated(
        *, slides="AB", constant=False, baselines=True, train_slides=("C", "D"), **options
    ):
        files = []
        for slide in slides:
            options |= {"fold": 0, "train_slides": list(train_slides), "seed": ord(slide)}
            prediction = predicted(cohort, slide, **options)
            prediction.mean *= not constant
            files.append(prediction.write(tmp_path / "p" / f"{slide}.h5ad"))
        roots = {"source_dataroot": cohort.root, "embed_dataroot": cohort.embeddings}
        options = {"baselines": baselines, "n_bootstrap": 20, **roots}
        return evaluate(files, cohort.root, tmp_path / "out", **options)

    return evaluated


@pytest.fixture
def evaluation(run):
    return run()


def test_the_page_is_sound_accessible_and_needs_no_network(evaluation):
    html = render_report(evaluation)
    assert html == (evaluation.out / "report.html").read_text()
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en"
    assert "graph: predicted expression on 2 slides" in page.text
    assert page.all("title")
    images = page.all("img")
    assert len(images) == 2 * 3 * 3  # slides, genes; measured, graph, ridge
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    for svg in page.all("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert all("href" not in attrs and "onerror" not in attrs for _, attrs in page.tags)
    assert all(heading.get("scope") for heading in page.all("th"))


def test_the_table_holds_the_scores_and_the_text_the_comparison(evaluation):
    page = Page(render_report(evaluation))
    for row in evaluation.rows:
        assert row.name in page.text
        if np.isfinite(row.mean):
            assert f"{row.mean:.3f}" in page.text
    row = evaluation.rows[0]
    more = "above" if row.difference > 0 else "below"
    assert f"{abs(row.difference):.3f} {more} the best baseline, ridge" in page.text
    assert "sequencing depth" in page.text
    assert "no measurement" in page.text


def test_maps_are_of_the_best_median_and_worst_gene_on_one_scale(evaluation, monkeypatch):
    drawn, draw = [], report.map_png

    def recording(frame, values, limits):
        drawn.append((values, limits))
        return draw(frame, values, limits)

    monkeypatch.setattr(report, "map_png", recording)
    page = Page(render_report(evaluation))
    slide = evaluation.slides[0]
    order = np.argsort(-slide.scores["graph"].per_gene["pearson"])
    genes = [slide.genes[i] for i in (order[0], order[3], order[-1])]
    for which, gene in zip(("Best", "Median", "Worst"), genes, strict=True):
        assert f"{which}: {gene}" in page.text
    np.testing.assert_array_equal(drawn[0][0], slide.truth[:, order[0]])
    np.testing.assert_array_equal(drawn[1][0], slide.predictions["graph"][:, order[0]])
    for start in range(0, len(drawn), 3):
        assert len({limits for _, limits in drawn[start : start + 3]}) == 1


def test_maps_are_limited_on_many_slides_and_scores_are_not(evaluation, monkeypatch):
    monkeypatch.setattr(report, "MAX_MAPS", 1)
    page = Page(render_report(evaluation))
    assert len(page.all("img")) == 9
    assert "Maps are shown for the first 1 slide" in page.text
    for slide in evaluation.slides:
        assert f"{evaluation.rows[0].slides[slide.name]:.3f}" in page.text
    assert f"{evaluation.rows[0].mean:.3f}" in page.text


def test_names_from_files_are_text_and_nothing_else(cohort, run):
    for slide in "ABCD":
        truth = read_expression(cohort.expression(slide))
        names = truth.barcodes, HOSTILE, truth.coords
        write_expression(cohort.expression(slide), truth.counts, *names, um_per_px=1)
    evaluation = run(genes=HOSTILE, denoiser='"><img src=x onerror=alert(1)>')
    page = Page(render_report(dataclasses.replace(evaluation, notes=["<b>note</b>"])))
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert "<b>note</b>" in page.text


def test_headlines_are_of_held_out_slides_and_training_slides_are_marked(run):
    evaluation = run(train_slides=["B", "C"])
    page = Page(render_report(evaluation))
    graph = evaluation.rows[0]
    assert f"correlation of {graph.slides['A']:.3f}" in page.text
    assert "on 1 held-out slide" in page.text
    mark = "trained on this slide: a training score, not a test score"
    assert f"Slide B: graph {graph.slides['B']:.3f} ({mark})" in page.text
    assert page.text.index("Warnings") < page.text.index("Scores")
    only = Page(render_report(run(slides="B", train_slides=["B"])))
    assert "reaches a mean correlation" not in only.text
    unknown = Page(render_report(run(train_slides=[], baselines=False)))
    assert "on 2 slides" in unknown.text


def test_a_prediction_without_any_correlation_has_a_report(run):
    page = Page(render_report(run(slides="A", constant=True, baselines=False)))
    assert "No gene has a correlation." in page.text
    assert "graph reaches a mean correlation of –" in page.text
    assert not page.all("img")


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.1234, False, "0.123"),
        (-0.1234, False, "−0.123"),
        (-0.0001, False, "0.000"),
        (0.05, True, "+0.050"),
        (float("nan"), False, "–"),
        (None, True, "–"),
    ],
)
def test_numbers_read_well(value, sign, text):
    assert number(value, sign=sign) == text


def test_samples_have_a_figure_and_a_table_of_calibration_by_scale(run):
    page = Page(render_report(run(n_samples=4, baselines=False)))
    assert "Calibration by scale" in page.text
    (chart,) = (tag for tag in page.all("svg") if tag.get("class") == "scales")
    assert chart["aria-label"].startswith("Coverage of 80% intervals")
    assert "graph, centred" in page.text
    assert re.search(r"graph: coverage by size of region.*1 spot.*9 spots.*slide", page.text)
    assert "Calibration by scale" not in Page(render_report(run(baselines=False))).text


def test_measures_of_samples_are_a_table_of_rows_that_have_samples(run):
    page = Page(render_report(run(n_samples=4))).text
    start, end = page.index("Of the samples"), page.index("Calibration by scale")
    assert "graph" in page[start:end]
    assert "ridge" not in page[start:end]
    assert "Of the samples" not in Page(render_report(run())).text
