"""The summarise stage: predictions of a cohort as tables of slides, genes, domains and patients."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stflow_graph.io.folders import atomic_folder, marked
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.tables import TABLE_FORMATS
from stflow_graph.io.versions import Versions
from stflow_graph.summary.cohort import prediction_files
from stflow_graph.summary.inputs import Attempts, read_inputs
from stflow_graph.summary.output import DOMAINS, JSON, TABLES, write_summary
from stflow_graph.summary.settings import SummarySettings

logger = logging.getLogger(__name__)

_ENTRIES = {JSON, DOMAINS, *(f"{name}.{ending}" for name in TABLES for ending in TABLE_FORMATS)}
_FOLDER = marked("a summary of predictions", JSON, ("stflow_graph.summary/",), _ENTRIES)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary on disk.

    Attributes:
        out: its folder.
        slides: the table of slides.
        patients: the table of patients, if there is one.
        content: of ``summary.json``; its ``notes`` are warnings.
    """

    out: Path
    slides: pd.DataFrame
    patients: pd.DataFrame | None
    content: dict[str, Any]


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
    hashes of the inputs and what was left out. Slides are read one at a time and in blocks. The
    order of the files does not matter, and the same files give the same bytes.

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
        versions.check()
    result = Summary(out, written.slides, written.patients, written.content)
    if done:
        done(result)
    attempts.check()
    return result
