from __future__ import annotations

import base64
import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stflow_graph.errors import BadInput
from stflow_graph.evaluation.prediction_page import (
    MIN_SAMPLES,
    read_reported_slide,
    render_predictions,
)
from stflow_graph.io.predictions import Block, Late, write_prediction_blocks

LEVELS = np.array([0, 0.1, 0.5, 0.9, 1])


def write(
    path,
    n=60,
    genes=("A<b>", "B", "C"),
    in_range=True,
    n_samples=MIN_SAMPLES,
    known=True,
    **provenance,
):
    rng, g = np.random.default_rng(0), len(genes)
    mean = rng.gamma(2, 1, (n, g)).astype(np.float32)
    drawn = (mean + rng.normal(size=(n_samples, n, g))).astype(np.float32) if n_samples else None
    side = int(np.ceil(n**0.5))
    coords = 100.0 * np.stack(np.unravel_index(np.arange(n), (side, side)), 1)
    info = {"expected_pearson": np.linspace(0.1, 0.5, g)} if known else {}
    if known:
        info["quantiles"] = (np.quantile(mean, LEVELS, axis=0).T, LEVELS)
    record = {"slide": in_range, "share": 0.97, "embeddings": in_range, "stain": None}
    info["late"] = lambda: Late({"in_range": record} if known else {}, {})
    write_prediction_blocks(
        path,
        [Block(slice(0, n), mean, drawn)],
        [f"b{i}" for i in range(n)],
        list(genes),
        coords,
        n_samples=n_samples,
        provenance={
            "slide": path.stem,
            "target": "log1p",
            "um_per_px": 0.5,
            "train_slides": ["T"],
            "n_samples": n_samples,
            **provenance,
        },
        **info,
    )
    return mean


def images(page):
    found = re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in found]


def test_the_page_shows_maps_tables_and_where_the_spots_lie(tmp_path):
    mean = write(tmp_path / "S.h5ad")
    Image.new("RGB", (900, 600), "pink").save(tmp_path / "S.png")
    slide = read_reported_slide(tmp_path / "S.h5ad", tmp_path / "S.png")
    assert [gene.name for gene in slide.genes] == ["C", "B", "A<b>"]  # the most reliable first
    first = slide.genes[0]
    assert first.mean == pytest.approx(mean[:, 2].mean(), rel=1e-5)
    assert first.high == pytest.approx(0.1, abs=0.02)
    assert 0.5 < first.percentile < 0.8
    page = render_predictions([slide])
    kinds = [kind for kind, _ in images(page)]
    assert kinds == [*6 * ["png"], "jpeg"]  # mean and deviation of each gene, overlay
    assert "A&lt;b&gt;" in page
    assert "<b>" not in re.sub(r"<b( class=\"out\")?>[^<]*</b>", "", page)
    assert "in range (97% of spots)" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page == render_predictions([slide])
    # results first, what they mean after them, how they were made at the end
    order = ["<h2>Slides", "<h2>S<", "How to read this page", "Percentile", "How this was made"]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)


def png_of(width: int, height: int) -> bytes:
    """Return the beginning of a PNG of a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(40)


@pytest.mark.parametrize("size", [(9, 9), (2**13, 2**13), (2**16, 2**16), (2**30, 2**30)])
@pytest.mark.parametrize("keep", [0, 8, 40, None])
def test_a_damaged_overlay_is_left_out(tmp_path, caplog, size, keep):
    write(tmp_path / "S.h5ad")
    (tmp_path / "S.png").write_bytes(png_of(*size)[:keep])
    slide = read_reported_slide(tmp_path / "S.h5ad", tmp_path / "S.png")
    assert slide.overlay == ""
    (record,) = caplog.records
    text = record.getMessage()
    assert "S.png: content: found damaged" in text
    assert text.isprintable()
    assert "jpeg" not in [kind for kind, _ in images(render_predictions([slide]))]


def test_slides_out_of_range_come_first(tmp_path):
    for name, in_range in (("S", True), ("T", False)):
        write(tmp_path / f"{name}.h5ad", in_range=in_range, n_samples=0)
    slides = [read_reported_slide(tmp_path / f"{name}.h5ad") for name in "ST"]
    page = render_predictions(slides)
    assert page.index("T is unlike the slides") < page.index("<h2>Slides")
    assert "S is unlike" not in page
    assert len(images(page)) == 6  # without samples and overlays, a map a gene


def test_predictions_without_what_newer_models_know(tmp_path):
    write(tmp_path / "S.h5ad", n=1, genes=("A",), n_samples=0, known=False)
    page = render_predictions([read_reported_slide(tmp_path / "S.h5ad")])
    assert "unknown" in page
    assert "1 spot" in page


def test_many_spots_are_averaged_and_many_slides_have_no_maps(tmp_path):
    write(tmp_path / "S.h5ad", n=40_000, genes=("A",), n_samples=0)
    slide = read_reported_slide(tmp_path / "S.h5ad")
    page = render_predictions([slide])
    assert "neighbouring spots are averaged in maps" in page
    assert len(page) < 1e6
    page = render_predictions([slide] * 9)
    assert len(images(page)) == 8
    assert "first 8 slides" in page


def test_other_files_are_refused(tmp_path):
    (tmp_path / "S.h5ad").write_text("none")
    with pytest.raises(BadInput):
        read_reported_slide(tmp_path / "S.h5ad")


def test_failures_warnings_and_what_is_left_out_are_named(tmp_path):
    write(tmp_path / "S.h5ad", n_samples=0, warnings=["5% on <tissue>"])
    page = render_predictions(
        [read_reported_slide(tmp_path / "S.h5ad")],
        failed=[("F1", "no <scale>"), ("F2", "")],
        left_out=[("x.h5ad", "no prediction")],
    )
    assert "2 slides failed" in page
    assert "F1</b>: no &lt;scale&gt;</li>" in page
    assert "F2</b></li>" in page
    assert "S</b>: 5% on &lt;tissue&gt;</p>" in page
    assert "x.h5ad (no prediction)." in page
    alone = render_predictions([read_reported_slide(tmp_path / "S.h5ad")])
    assert "failed" not in alone
    assert "Not shown" not in alone


def test_deviations_of_few_samples_are_not_mapped(tmp_path):
    write(tmp_path / "S.h5ad", n_samples=MIN_SAMPLES - 1)
    page = render_predictions([read_reported_slide(tmp_path / "S.h5ad")])
    assert len(images(page)) == 3
    assert f"{MIN_SAMPLES - 1} samples, too few for maps" in page
    write(tmp_path / "S.h5ad", n_samples=MIN_SAMPLES)
    page = render_predictions([read_reported_slide(tmp_path / "S.h5ad")])
    assert len(images(page)) == 6
    assert f"standard deviation of {MIN_SAMPLES} samples" in page
    assert "too few for maps" not in page


def test_the_page_states_how_predictions_were_made(tmp_path):
    made = {
        "checkpoint_sha256": "0123456789" * 4,
        "seed": 7,
        "denoiser": "graph",
        "dataset": "her2st",
        "fold": None,
        "version": "0.1.0",
        "torch": "2.13",
        "patch_um": 112.0,
        "grid": {"pitch_um": 200.0, "layout": "square", "min_tissue": 0.25},
        "um_per_px_given": 0.688,
    }
    for name in "ST":
        write(tmp_path / f"{name}.h5ad", n_samples=0, **made)
    write(tmp_path / "U.h5ad", n_samples=0, **made | {"grid": None, "seed": 0})
    page = render_predictions([read_reported_slide(tmp_path / f"{name}.h5ad") for name in "STU"])
    assert "graph of her2st, all slides" in page
    assert ">01234567<" in page
    assert "stflow_graph 0.1.0, torch 2.13" in page
    first, second = re.findall(r"<code>(.*?)</code>", page)
    assert first == (
        "stflow-graph predict IMAGES --model RUN --out OUT --um-per-px 0.688 --pitch-um 200 "
        "--layout square --n-samples 0 --seed 7"
    )
    assert second.startswith("stflow-graph predict IMAGE --model RUN --out OUT --um-per-px 0.688 ")
    assert "--spots TABLE" in second
    assert page.index("S, T</h3>") < page.index("U</h3>")
