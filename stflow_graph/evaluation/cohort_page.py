"""The report of a cohort's predictions: one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stflow_graph.errors import is_of_machine, one_line, reason_of
from stflow_graph.evaluation.domain_maps import N_COLOURS, domain_map, palette, plane_png
from stflow_graph.evaluation.origins import origins_of
from stflow_graph.evaluation.page import UNITS, render
from stflow_graph.evaluation.set_chart import SetRow, set_chart
from stflow_graph.io.prediction_file import open_prediction
from stflow_graph.io.predictions import warnings_of
from stflow_graph.stats.domains import SpotSample
from stflow_graph.stats.umap_plane import MIN_SPOTS, umap_plane

logger = logging.getLogger(__name__)

MAX_SLIDES = 50  # shown
_MAX_SETS = 12
_MAX_ORIGINS = 10
# of names from files: control characters, directions of text, halves of pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class CohortSlide:
    """A slide of the cohort.

    Attributes:
        name: of the slide.
        path: its prediction.
        sha256: of that file.
        provenance: of the prediction.
        n_spots: number of its spots.
        patient: "" if unknown.
        domains: ``[N]`` from 1 on, None without domains.
    """

    name: str
    path: Path
    sha256: str
    provenance: Mapping[str, Any]
    n_spots: int
    patient: str = ""
    domains: np.ndarray | None = None

    @property
    def in_range(self) -> Mapping[str, Any] | None:
        """How far the slide lies from those of training, see ``inference.in_range``."""
        record = self.provenance.get("in_range")
        if not isinstance(record, Mapping) or not isinstance(record.get("slide"), bool):
            return None
        return record if isinstance(record.get("share"), int | float) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that its image and spots met."""
        return warnings_of(self.provenance)


@dataclasses.dataclass(frozen=True)
class CohortDomain:
    """A domain.

    Attributes:
        share: of all spots.
        n_slides: that have a spot of it.
        markers: genes highest above the other domains, with the difference of means.
    """

    share: float
    n_slides: int
    markers: Sequence[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What the page shows.

    Attributes:
        slides: one or more, by name.
        n_genes: of all slides together.
        n_patients: None if unknown.
        content: of ``summary.json``.
        options: of the command, without its inputs.
        gene_sets: a row a slide and set: slide, gene_set, mean, lower, upper, n_present, n_genes;
            None without sets.
        patients: a row a patient, a column a set; None if unknown.
        domains: the largest first, none without domains.
        sample: of spots, None without domains.
    """

    slides: Sequence[CohortSlide]
    n_genes: int
    n_patients: int | None
    content: Mapping[str, Any]
    options: Mapping[str, object]
    gene_sets: pd.DataFrame | None = None
    patients: pd.DataFrame | None = None
    domains: Sequence[CohortDomain] = ()
    sample: SpotSample | None = None


def render_cohort(cohort: Cohort) -> str:
    """Return the page as HTML with styles and maps inside it; it needs no network.

    The same cohort gives the same page, byte for byte: it has no date. At most fifty slides are
    shown, whose files are opened one at a time.
    """
    shown = cohort.slides[:MAX_SLIDES]
    content, settings = cohort.content, cohort.content["settings"]
    colours = palette(len(cohort.domains))
    origins = origins_of(cohort.slides)
    sets = _set_views(cohort, [slide.name for slide in shown])
    page = render(
        "cohort.html.jinja",
        cohort=cohort,
        shown=shown,
        hidden=cohort.slides[MAX_SLIDES:],
        unit=UNITS.get(content["target"], content["target"]),
        n_spots=sum(slide.n_spots for slide in cohort.slides),
        out_of_range=[s.name for s in cohort.slides if s.in_range and not s.in_range.get("slide")],
        n_unknown=sum(slide.in_range is None for slide in cohort.slides),
        warned=[(s.name, text) for s in cohort.slides for text in s.warnings],
        failed=content.get("left_out", {}).get("slides", {}),
        notes=content["notes"],
        colours=colours,
        n_colours=N_COLOURS,
        maps=[_map_view(s, s.domains, colours) for s in shown if s.domains is not None],
        plane=_plane(cohort, colours),
        min_spots=MIN_SPOTS,
        sets=sets[:_MAX_SETS],
        sets_left=[name for name, *_ in sets[_MAX_SETS:]],
        settings=settings,
        inputs=[(Path(path).name, digest) for path, digest in content["files"].items()],
        command=_command(cohort.options),
        origins=origins[:_MAX_ORIGINS],
        n_origins_left=len(origins[_MAX_ORIGINS:]),
    )
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], str(page))


def _map_view(slide: CohortSlide, domains: np.ndarray, colours: Sequence[str]) -> dict[str, Any]:
    labels = domains.astype(np.int64) - 1
    with open_prediction(slide.path) as file:
        drawn = domain_map(file, labels, colours)
    shares = np.bincount(labels, minlength=len(colours)) / len(labels)
    there = [(i + 1, float(share), colours[i]) for i, share in enumerate(shares) if share > 0]
    return {"slide": slide, "map": drawn, "shares": there}


def _plane(cohort: Cohort, colours: Sequence[str]) -> dict[str, Any] | None:
    """Return the panels of UMAP, without them why there are none, None without domains."""
    sample = cohort.sample
    if sample is None:
        return None
    n, settings = len(sample.features), cohort.content["settings"]
    nothing = {"n": n, "panels": [], "missing": False, "error": ""}
    if n < MIN_SPOTS:
        return nothing
    try:
        made = umap_plane(sample.features, settings["seed"])
    except Exception as error:  # of packages that only a picture needs: the tables are there
        if is_of_machine(error):
            raise
        logger.warning("no UMAP: %s", reason_of(error))
        return nothing | {"error": reason_of(error)}
    if made is None:
        return nothing | {"missing": True}
    places, version = made
    of_slides = palette(len(sample.slides))
    return nothing | {
        "version": version,
        "n_features": sample.features.shape[1],
        "slides": list(zip(sample.slides, of_slides, strict=True)),
        "panels": [
            ("domain", plane_png(places, sample.domain.astype(np.int64) - 1, colours)),
            ("slide", plane_png(places, sample.slide, of_slides)),
        ],
    }


def _set_views(cohort: Cohort, shown: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Return name, number of genes and chart of each gene set; of those shown, that is."""
    if cohort.gene_sets is None:
        return []
    views = []
    groups = list(cohort.gene_sets.groupby("gene_set", sort=False))
    for i, (name, table) in enumerate(groups):
        chart = ""
        if i < _MAX_SETS:
            rows = _set_rows(cohort, str(name), table.set_index("slide").loc[list(shown)])
            chart = set_chart(rows, f"Means of {name} with intervals, a row a slide")
        views.append((str(name), f"{table['n_present'].max()} of {table['n_genes'].max()}", chart))
    return views


def _set_rows(cohort: Cohort, name: str, table: pd.DataFrame) -> list[SetRow]:
    """Return a row a slide; slides of a patient follow their mean if there are several."""
    rows = [
        SetRow(slide, mean, lower, upper, False)
        for slide, mean, lower, upper in zip(
            table.index, table["mean"], table["lower"], table["upper"], strict=True
        )
    ]
    if cohort.patients is None:
        return rows
    patient_of = {slide.name: slide.patient for slide in cohort.slides}
    rows.sort(key=lambda row: patient_of[row.name])
    result = []
    patients = cohort.patients.set_index("patient")
    for patient, group in itertools.groupby(rows, key=lambda row: patient_of[row.name]):
        if patients.loc[patient, "n_slides"] > 1:
            mean = float(patients.loc[patient, name])
            result.append(SetRow(patient, mean, np.nan, np.nan, True))
        result += group
    return result


def _command(options: Mapping[str, object]) -> str:
    words = ["stflow-graph summarise PREDICTIONS --out SUMMARY"]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        if values and value is not None:
            words.append(f"{name} {' '.join(shlex.quote(str(word)) for word in values)}")
    return one_line(" ".join(words), 2000)
