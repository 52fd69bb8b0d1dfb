"""The report of predictions without truth: one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stflow_graph.errors import BadInput, as_bad_input
from stflow_graph.evaluation.charts import MapFrame, colour_scale, map_png
from stflow_graph.evaluation.groups import MAX_DRAWN, group_means, groups_of_spots
from stflow_graph.evaluation.origins import origins_of
from stflow_graph.evaluation.page import UNITS, render
from stflow_graph.io.prediction_file import open_prediction
from stflow_graph.io.predictions import warnings_of
from stflow_graph.version import __version__

MAX_MAPS = 8  # slides with maps
_MAX_GENES = 8  # genes with maps, the most reliable
_OVERLAY_PX = 1100
_MAX_PIXELS = 2**25  # of an overlay, which is drawn with far fewer
MIN_SAMPLES = 16  # of fewer the deviation is uncertain by a fifth, which looks like structure
_HIGH = 0.9  # quantile of the training slides above which expression counts as high there

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PredictedGene:
    """A gene of a slide.

    Attributes:
        name: of the gene.
        expected: PCC of the gene on held-out training slides, NaN if unknown.
        mean: expected expression, mean over spots.
        percentile: of that mean among the spots of the training slides, 0 .. 1, NaN if unknown.
        high: share of spots above the 90th percentile of the training slides, NaN if unknown.
    """

    name: str
    expected: float
    mean: float
    percentile: float
    high: float


@dataclasses.dataclass(frozen=True)
class ReportedSlide:
    """What the page shows of a slide.

    Attributes:
        name: of the slide.
        provenance: of the prediction.
        coords: ``[N, 2]`` level-0 px.
        genes: the most reliable first.
        maps: mean ``[N]`` of the first genes, and the standard deviation of their samples, None
            where these are too few.
        n_samples: of the prediction.
        overlay: a picture of where the spots lie, a JPEG as base64; "" without one.
    """

    name: str
    provenance: Mapping[str, Any]
    coords: np.ndarray
    genes: list[PredictedGene]
    maps: list[tuple[np.ndarray, np.ndarray | None]]
    n_samples: int
    overlay: str

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def in_range(self) -> Mapping[str, Any] | None:
        """How far the slide lies from those of training, see ``inference.in_range``."""
        record = self.provenance.get("in_range")
        return record if isinstance(record, Mapping) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that its image and spots met."""
        return warnings_of(self.provenance)


def read_reported_slide(path: str | Path, overlay: str | Path | None = None) -> ReportedSlide:
    """Read what the page shows of a prediction; samples are not read.

    Args:
        path: the prediction.
        overlay: a picture of where its spots lie.

    Raises:
        BadInput: not a prediction.
    """
    with open_prediction(path) as file:
        expected = file.expected_pearson()
        if expected is None:
            expected = np.full(len(file.genes), np.nan)
        # stable, and genes of unknown reliability last
        order = np.argsort(-np.nan_to_num(expected, nan=-2), kind="stable")
        shown, known = order[:_MAX_GENES], file.training_quantiles()
        x = file.columns(np.arange(len(file.genes)))
        genes = [_gene(file.genes[i], expected[i], x[:, i], i, known) for i in order]
        std = file.columns(shown, "std") if file.n_samples >= MIN_SAMPLES else None
        maps = [(x[:, i], None if std is None else std[:, k]) for k, i in enumerate(shown)]
        return ReportedSlide(
            file.slide,
            file.provenance,
            file.coords,
            genes,
            maps,
            file.n_samples,
            _small(overlay),
        )


def render_predictions(
    slides: Sequence[ReportedSlide],
    failed: Sequence[tuple[str, str]] = (),
    left_out: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page as HTML with styles and maps inside it; it needs no network.

    The same predictions give the same page, byte for byte: it has no date.

    Args:
        slides: one or more, those with maps first.
        failed: slides that could not be predicted, and why.
        left_out: files of the folder that are not shown, and why.
    """
    first = slides[0].provenance
    views = [_view(slide, maps=i < MAX_MAPS) for i, slide in enumerate(slides)]
    page = render(
        "predictions.html.jinja",
        slides=slides,
        views=views,
        unit=UNITS.get(str(first.get("target")), str(first.get("target"))),
        model=first,
        failed=failed,
        left_out=left_out,
        origins=origins_of(slides),
        max_maps=MAX_MAPS,
        min_samples=MIN_SAMPLES,
        high=_HIGH,
        colours=colour_scale(),
        version=__version__,
    )
    return str(page)


def _gene(
    name: str,
    expected: float,
    values: np.ndarray,
    column: int,
    known: tuple[np.ndarray, np.ndarray] | None,
) -> PredictedGene:
    mean, percentile, high = float(values.mean()), np.nan, np.nan
    if known is not None:
        quantiles, levels = known[0][column], known[1]
        percentile = float(np.interp(mean, quantiles, levels))
        high = float((values > np.interp(_HIGH, levels, quantiles)).mean())
    return PredictedGene(name, float(expected), mean, percentile, high)


def _small(overlay: str | Path | None) -> str:
    if overlay is None or not os.path.isfile(overlay):
        return ""
    buffer = io.BytesIO()
    try:
        with (
            as_bad_input(overlay, "content", "a picture of the slide in PNG"),
            Image.open(overlay, formats=["PNG"]) as picture,
        ):
            if math.prod(picture.size) > _MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} px")
            picture.thumbnail((_OVERLAY_PX, _OVERLAY_PX))
            picture.convert("RGB").save(buffer, "JPEG", quality=82)
    except BadInput as error:  # a decoration
        logger.warning("%s. The page goes without; remove it to have it drawn again", error)
        return ""
    return base64.b64encode(buffer.getvalue()).decode()


def _view(slide: ReportedSlide, *, maps: bool) -> dict[str, Any]:
    view: dict[str, Any] = {"slide": slide, "maps": [], "binned": len(slide) > MAX_DRAWN}
    if not maps:
        return view
    places, group = groups_of_spots(slide.coords)
    frame = MapFrame.of(places, slide.provenance.get("um_per_px"))
    view["bar_um"] = frame.bar_um
    for gene, (mean, std) in zip(slide.genes, slide.maps, strict=False):
        figures = [("expected expression", *_figure(frame, group_means(mean, group)))]
        if std is not None:
            name = f"standard deviation of {slide.n_samples} samples"
            figures.append((name, *_figure(frame, group_means(std, group))))
        view["maps"].append({"gene": gene, "figures": figures, "size": frame.size})
    return view


def _figure(frame: MapFrame, values: np.ndarray) -> tuple[str, tuple[float, float]]:
    """Return a map as base64, and the values of its first and last colour."""
    low, high = (float(end) for end in np.percentile(values, (1, 99)))
    return base64.b64encode(map_png(frame, values, (low, max(high, low + 1e-6)))).decode(), (
        low,
        high,
    )
