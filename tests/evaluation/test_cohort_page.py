from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from artefacts import edit_h5, write_prediction
from PIL import Image

from stflow_graph.evaluation import cohort_page
from stflow_graph.evaluation.cohort_page import (
    MAX_SLIDES,
    Cohort,
    CohortDomain,
    CohortSlide,
    render_cohort,
)
from stflow_graph.evaluation.domain_maps import N_COLOURS, palette
from stflow_graph.evaluation.groups import groups_of_spots, most_frequent
from stflow_graph.evaluation.set_chart import SetRow, set_chart
from stflow_graph.io.picture import Picture
from stflow_graph.stats.domains import SpotSample

SIDE, N_DOMAINS = 6, 3
X, Y = (grid.ravel() for grid in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
COORDS = np.stack([100.0 * X + 100, 100.0 * Y + 100], 1)
DOMAINS = (1 + X // 2).astype(np.uint8)  # three stripes, left to right
CONTENT = {
    "version": "1.2.3",
    "packages": {"numpy": "9.8"},
    "target": "log1p",
    "settings": {"domains": N_DOMAINS, "smoothing": 0, "seed": 7, "format": "csv"},
    "files": {"/somewhere/sets.gmt": "ab" * 32},
    "notes": ["two models"],
}


@pytest.fixture(autouse=True)
def plane(monkeypatch):
    """Stand in for UMAP, which takes seconds and is an extra."""
    calls = []

    def two_features(features, seed):
        calls.append((features, seed))
        return features[:, :2].astype(float), "0.0.7"

    monkeypatch.setattr(cohort_page, "umap_plane", two_features)
    return calls


def slide(folder: Path, name: str = "S1", image: bool = False, **provenance) -> CohortSlide:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = (250, 0, 0), (0, 0, 250)  # the border is at x = 400
    provenance = {"slide": name, "target": "log1p", "um_per_px": 0.5, **provenance}
    path = folder / f"{len(list(folder.iterdir()))}.h5ad"
    write_prediction(
        path,
        np.ones((len(COORDS), 2), np.float32),
        [f"b{i}" for i in range(len(COORDS))],
        ["G0", "G1"],
        COORDS,
        provenance=provenance,
        picture=Picture(pixels, 20, (800, 800), "S.jpg") if image else None,
    )
    return CohortSlide(name, path, "f" * 64, provenance, len(COORDS), "", DOMAINS)


def cohort(slides, **options) -> Cohort:
    markers = [("KRT8", 1.25), ("MKI67", 0.5)], [], [("CD3E", 0.75)]
    domains = [CohortDomain(1 / 3, len(slides), genes) for genes in markers]
    spots = np.random.default_rng(0).normal(size=(len(slides) * 36, 4)).astype(np.float32)
    sample = SpotSample(
        [each.name for each in slides],
        np.repeat(np.arange(len(slides)), 36),
        np.tile(DOMAINS, len(slides)),
        spots,
    )
    content = {**CONTENT, **options.pop("content", {})}
    given = {"domains": domains, "sample": sample, **options}
    return Cohort(slides, 50, None, content, {"--domains": 3}, **given)


def images(page: str) -> list[tuple[str, Image.Image]]:
    stored = re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in stored]


def test_the_page_has_maps_legend_plane_and_origin_in_this_order(tmp_path, plane):
    slides = [slide(tmp_path, name, image=name == "S1") for name in ("S1", "S2")]
    page = render_cohort(cohort(slides))
    # image and domains, domains alone, two panels
    assert [kind for kind, _ in images(page)] == ["jpeg", "png", "png", "png", "png"]
    order = ["<h1>Summary of predictions of 2 slides", "Two models.", "KRT8", "UMAP, coloured"]
    order = [*order[:3], "UMAP of spots, coloured by slide", "<h2>Slides", "<h2>How this was made"]
    order += ["SHA-256 abababab", "<h2>How to read this page"]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)
    assert "+1.25" in page
    assert "none is higher" in page  # than domain 2 anywhere
    assert "--domains 3" in page
    assert "umap-learn 0.0.7" in page
    assert "seed 7" in page
    assert [seed for _, seed in plane] == [7]
    assert "/somewhere" not in page
    assert page.count('alt="') == 5
    assert not re.search(r"(src|href)=\"(?!data:|#)|<script|@import|https?:", page)


def test_the_same_cohort_gives_the_same_bytes(tmp_path):
    made = cohort([slide(tmp_path, image=True)])
    assert render_cohort(made) == render_cohort(made)


def test_spots_have_the_colours_of_their_domains_on_their_tissue(tmp_path):
    (_, tissue), (_, drawn), *_ = images(render_cohort(cohort([slide(tmp_path, image=True)])))
    assert tissue.size == drawn.size
    rgba, below = np.asarray(drawn.convert("RGBA")), np.asarray(tissue).astype(int)
    # from 0 to 700 px, with room for a scale bar below
    at = np.rint(COORDS / 700 * drawn.size[0]).astype(int)
    for (x, y), domain in zip(at, DOMAINS, strict=True):
        colour = tuple(int(palette(3)[domain - 1][i : i + 2], 16) for i in (1, 3, 5))
        assert np.abs(rgba[y, x, :3].astype(int) - colour).max() < 12
        assert rgba[y, x, 3] > 250
    border = round(400 / 700 * tissue.size[0])
    assert (below[200, : border - 9, 0] > 200).all()
    assert (below[200, border + 9 :, 2] > 200).all()
    between = round(150 / 700 * drawn.size[0])
    assert rgba[between, between, 3] == 0  # tissue is seen between the spots


def test_names_are_escaped(tmp_path):
    evil = "<script>x</script>&\x1b[2J\ud800\u202e"
    stored = {"dataset": evil, "warnings": [evil], "encoder": evil}
    one = dataclasses.replace(slide(tmp_path), name=evil, patient=evil, provenance=stored)
    table = set_table([evil])
    content = {"notes": [evil], "left_out": {"slides": {evil: evil}}, "files": {evil: "ab"}}
    made = cohort(
        [one],
        domains=[CohortDomain(1 / 3, 1, [(evil, 1.0)])] * 3,
        gene_sets=table.assign(gene_set=evil),
        patients=pd.DataFrame({"patient": [evil], "n_slides": [2], evil: [0.5]}),
        content=content,
    )
    made = dataclasses.replace(made, n_patients=1, options={"--patients": evil})
    page = render_cohort(made)
    page.encode()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    assert not re.search("[\x1b\u202e\ud800]", page)
    assert r"\x1b[2J\ud800\u202e" in page


def test_without_the_package_the_page_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort_page, "umap_plane", lambda features, seed: None)
    page = render_cohort(cohort([slide(tmp_path)]))
    assert "&#39;stflow-graph[scanpy]&#39;" in page or "'stflow-graph[scanpy]'" in page
    assert len(images(page)) == 1  # the map, and no other plot in its place
    assert "Do not read distances" not in page


def test_a_package_that_fails_does_not_lose_the_page(tmp_path, monkeypatch):
    def fail(features, seed):
        raise RuntimeError("numba <is> too old")

    monkeypatch.setattr(cohort_page, "umap_plane", fail)
    page = render_cohort(cohort([slide(tmp_path)]))
    assert "umap-learn failed: numba &lt;is&gt; too old" in page
    assert len(images(page)) == 1
    monkeypatch.setattr(cohort_page, "umap_plane", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        render_cohort(cohort([slide(tmp_path)]))


def test_few_spots_have_no_plane(tmp_path, plane):
    made = cohort([slide(tmp_path)])
    few = dataclasses.replace(made.sample, features=made.sample.features[:9])
    page = render_cohort(dataclasses.replace(made, sample=few))
    assert "Too few spots for a UMAP: 9" in page
    assert not plane


def test_without_domains_the_rest_is_there(tmp_path):
    one = dataclasses.replace(slide(tmp_path), domains=None)
    page = render_cohort(cohort([one], domains=(), sample=None, gene_sets=set_table(["S1"])))
    assert "No domains were asked for" in page
    assert "there are no domains" in page
    assert not images(page)
    assert '<svg class="set"' in page
    assert "<h2>How this was made" in page


def test_of_very_many_slides_fifty_are_shown_and_the_others_named(tmp_path):
    first = slide(tmp_path)
    names = [f"S{i:03d}" for i in range(60)]
    slides = [dataclasses.replace(first, name=name) for name in names[:MAX_SLIDES]]
    # files that are not there: only those shown are opened
    slides += [dataclasses.replace(first, name=n, path=tmp_path / n) for n in names[MAX_SLIDES:]]
    page = render_cohort(cohort(slides, gene_sets=set_table(names)))
    assert len(images(page)) == MAX_SLIDES + 2
    assert page.count('class="domain-map"') == MAX_SLIDES
    assert "10 further slides, not shown" in page
    assert ", ".join(names[MAX_SLIDES:]) in page
    assert page.count('<text class="name"') == MAX_SLIDES
    assert "Colours repeat after 24 slides" in page
    assert len(page) < 2e6


def test_slides_out_of_range_come_first(tmp_path):
    far = {"slide": False, "share": 0.2, "embeddings": False, "stain": False}
    near = {"slide": True, "share": 0.95, "embeddings": True, "stain": True}
    slides = [
        slide(tmp_path, "S1", in_range=near),
        slide(tmp_path, "S2", in_range=far, warnings=["tissue is cut off"]),
        slide(tmp_path, "S3"),
    ]
    page = render_cohort(cohort(slides, content={"left_out": {"slides": {"S4": "damaged"}}}))
    assert "<b>1 out of range</b>, 1 unknown" in page
    head = page[: page.index("<h2>")]
    assert "<b>1 slide out of range</b>" in head
    for text in ("S2. Their", "S4 (damaged)", "tissue is cut off"):
        assert text in head
    assert "in range (95% of spots)" in page
    assert "stain of another colour" in page


def test_an_image_that_cannot_be_read_is_left_out(tmp_path):
    one = slide(tmp_path, image=True)
    edit_h5(one.path, "uns/spatial/S1/images/hires", np.zeros((4, 4), np.uint8))
    page = render_cohort(cohort([one]))
    assert "its image cannot be read" in page
    assert [kind for kind, _ in images(page)] == ["png", "png", "png"]


def set_table(slides: list[str], *, lower: float = 0.2) -> pd.DataFrame:
    rows = [
        {"slide": name, "gene_set": "SET0", "mean": 0.5 + i, "lower": lower, "upper": 0.9 + i}
        for i, name in enumerate(slides)
    ]
    return pd.DataFrame(rows).assign(n_present=2, n_genes=3)


def test_gene_sets_have_a_row_a_slide_below_the_mean_of_its_patient(tmp_path):
    slides = [
        dataclasses.replace(slide(tmp_path, name), patient=patient)
        for name, patient in (("S1", "P2"), ("S2", "P1"), ("S3", "P2"))
    ]
    patients = pd.DataFrame({"patient": ["P1", "P2"], "n_slides": [1, 2], "SET0": [1.5, 1.4]})
    made = cohort(slides, gene_sets=set_table(["S1", "S2", "S3"]), patients=patients)
    page = render_cohort(dataclasses.replace(made, n_patients=2))
    rows = re.findall(r'<text class="(name|patient)"[^>]*>([^<]*)<', page)
    assert rows == [("name", "S2"), ("patient", "P2"), ("name", "S1"), ("name", "S3")]
    assert "80% intervals" in page
    assert "2 of 3 genes" in page
    assert "of <b>2 patients</b>" in page
    page = render_cohort(cohort(slides[:1], gene_sets=set_table(["S1"], lower=np.nan)))
    assert 'class="span"' not in page
    assert "Intervals need samples" in page


def test_dots_and_lines_are_where_the_values_are():
    rows = [SetRow("A", 1.0, 0.5, 2.0, False), SetRow("B", 2.0, np.nan, np.nan, False)]
    svg = set_chart([*rows, SetRow("C", np.nan, np.nan, np.nan, False)], "means")
    ticks = [float(x) for x in re.findall(r'class="tick" x="([\d.]+)"[^>]*>\d', svg)]
    values = [float(v) for v in re.findall(r'class="tick"[^>]*>([\d.]+)<', svg)]
    dots = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', svg)]
    np.testing.assert_allclose(np.interp([1, 2], values, ticks), dots, atol=0.2)
    ends = re.search(r'class="span" x1="([\d.]+)" x2="([\d.]+)"', svg)
    np.testing.assert_allclose(
        np.interp([0.5, 2], values, ticks), [float(x) for x in ends.groups()], atol=0.2
    )
    assert svg.count("<circle") == 2
    assert "–" in svg
    assert set_chart([rows[1]], "one value")
    assert set_chart([SetRow("C", np.nan, np.nan, np.nan, False)], "no value")


def test_colours_differ():
    assert len(set(palette(3 * N_COLOURS))) == 3 * N_COLOURS
    assert palette(100)[3 * N_COLOURS] == palette(1)[0]


def test_of_very_many_spots_the_commonest_domain_is_drawn():
    coords = np.stack(np.meshgrid(np.arange(200.0), np.arange(200.0)), -1).reshape(-1, 2)
    labels = (coords[:, 0] > 99).astype(np.int64)
    places, group = groups_of_spots(coords)
    assert len(places) <= 21_000
    assert (most_frequent(labels, group) == (places[:, 0] > 99)).all()
    assert most_frequent(labels, None) is labels
    assert most_frequent(np.array([2, 1, 1, 0]), np.array([0, 0, 0, 1])).tolist() == [1, 0]
