"""The summarise stage: predictions of a cohort as tables of slides, genes, domains and patients."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stflow_graph.evaluation.cohort_page import (
    Cohort,
    CohortDomain,
    CohortSlide,
    render_cohort,
)
from stflow_graph.io.atomic import write_text
from stflow_graph.io.folders import atomic_folder, marked
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.tables import TABLE_FORMATS
from stflow_graph.io.versions import Versions
from stflow_graph.summary.cohort import prediction_files
from stflow_graph.summary.domains import top_markers
from stflow_graph.summary.inputs import Attempts, Inputs, read_inputs
from stflow_graph.summary.output import DOMAINS, JSON, TABLES, Written, write_summary
from stflow_graph.summary.settings import SummarySettings
from stflow_graph.summary.tables import domain_names

logger = logging.getLogger(__name__)

PAGE = "report.html"
_ENTRIES = {
    JSON,
    DOMAINS,
    PAGE,
    *(f"{name}.{ending}" for name in TABLES for ending in TABLE_FORMATS),
}
_FOLDER = marked("a summary of predictions", JSON, ("stflow_graph.summary/",), _ENTRIES)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary on disk.

    Attributes:
        out: its folder.
        slides: the table of slides.
        patients: the table of patients, if there is one.
        content: of ``summary.json``; its ``notes`` are warnings.
        report: the page.
    """

    out: Path
    slides: pd.DataFrame
    patients: pd.DataFrame | None
    content: dict[str, Any]
    report: Path


def summarise(
    predictions: Sequence[str | Path],
    out: str | Path,
    settings: SummarySettings | None = None,
    *,
    report: Callable[[str], None] | None = None,
    done: Callable[[Summary], None] | None = None,
) -> Summary:
    """Write the tables of a cohort into a folder, which they replace as a whole.

    ``slides`` and ``genes`` always; ``gene_sets``, ``domain_genes`` and ``domains/<slide>``,
    ``patients`` and ``patient_genes`` where the settings have them; ``summary.json`` has settings,
    hashes of the inputs and what was left out; ``report.html`` shows domains, gene sets and, where
    umap-learn is installed, a UMAP of spots. Slides are read one at a time and in blocks. The order
    of the files does not matter, and the same files give the same bytes.

    Args:
        predictions: outputs of ``sample``: files, or folders of files.
        out: the folder: a new one, an empty one, or an earlier summary, which is replaced.
        settings: None: slides and genes alone.
        report: called with the name of each step.
        done: called once the folder is there, also where some slides failed.

    Raises:
        BadInput: predictions of several targets or two of a slide, patients unknown, or no
            gene of any gene set; nothing is written.
        BadConfig: more domains than different spots.
        MissingDependency: Parquet needs the package pyarrow.
        SomeFailed: some of several slides failed; the summary is of the others.
    """
    settings, report = settings or SummarySettings(), report or logger.info
    out = check_output_folder(out)
    _FOLDER.check(out)
    files = prediction_files(predictions)
    versions, attempts = Versions(), Attempts(len(files))
    inputs = read_inputs(files, settings, versions, attempts)
    with atomic_folder(out, _FOLDER) as folder:
        written = write_summary(folder, inputs, settings, attempts, report)
        report("drawing the report")
        write_text(folder / PAGE, render_cohort(_cohort(inputs, settings, written)))
        versions.check()
    page = out / PAGE
    result = Summary(out, written.slides, written.patients, written.content, page)
    if done:
        done(result)
    attempts.check()
    return result


def _cohort(inputs: Inputs, settings: SummarySettings, written: Written) -> Cohort:
    """Return what the page shows."""
    patient_of = {} if inputs.patients is None else inputs.patients.patient_of
    labels = {} if written.domains is None else written.domains.labels
    slides = [
        CohortSlide(
            source.slide,
            source.path,
            source.sha256,
            source.provenance,
            int(n_spots),
            patient_of.get(source.slide, ""),
            labels.get(source.slide),
        )
        for source, n_spots in zip(written.sources, written.slides["n_spots"], strict=True)
    ]
    domains = written.domains
    return Cohort(
        slides,
        written.n_genes,
        None if written.patients is None else len(written.patients),
        written.content,
        _options(settings),
        written.gene_sets,
        written.patients,
        _domains(settings, written),
        None if domains is None else domains.sample,
    )


def _domains(settings: SummarySettings, written: Written) -> list[CohortDomain]:
    if written.domains is None or written.domain_genes is None:
        return []
    sizes = written.domains.sizes(settings.domains)
    markers = top_markers(written.domain_genes, sizes)
    n_slides = (written.slides[domain_names(settings.domains)] > 0).sum()
    return [
        CohortDomain(float(size / sizes.sum()), int(n), genes)
        for size, n, genes in zip(sizes, n_slides, markers, strict=True)
    ]


def _options(settings: SummarySettings) -> dict[str, object]:
    """Return the options of the command that are not defaults; files by their names."""
    chosen = {
        "--patients": settings.patients and settings.patients.name,
        "--gene-sets": tuple(path.name for path in settings.gene_sets),
        "--domains": settings.domains,
        "--smoothing": settings.smoothing,
        "--reference": tuple(path.name for path in settings.reference),
        "--seed": settings.seed,
        "--format": settings.format if settings.format != "csv" else None,
    }
    return {name: value for name, value in chosen.items() if value}
