"""What a summary reads but the values, and what of it belongs together."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from stflow_graph.data.patients import PatientTable, read_patients
from stflow_graph.errors import BadInput, Failures, StflowError, count, one_line, unquoted
from stflow_graph.io.gene_sets import read_gene_sets
from stflow_graph.io.versions import Versions
from stflow_graph.summary.cohort import Source, check_cohort, prediction_files
from stflow_graph.summary.settings import SummarySettings
from stflow_graph.summary.tables import check_column_names


class Attempts:
    """Slides that fail while the others go on.

    Args:
        total: number of slides.

    Attributes:
        failed: slide, or its file's stem, to the error.
    """

    def __init__(self, total: int) -> None:
        self._only = total == 1
        self._failures = Failures(total)
        self.failed: dict[str, str] = {}

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Note an error of the body, unless the slide is the only one or the machine failed."""
        try:
            yield
        except Exception as error:
            if self._only and isinstance(error, StflowError):
                raise
            self._failures.add(name, error)
            self.failed[name] = one_line(str(error), 500)

    def check(self) -> None:
        """Report the slides that failed.

        Raises:
            SomeFailed: there are any.
        """
        self._failures.check()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a summary.

    Attributes:
        sources: the slides' predictions, by name of the slide.
        sets: gene sets, name to genes.
        patients: the table of patients, if any.
        reference: predictions of reference slides, none for no shares.
        sha256: file of gene sets or patients to its hash.
    """

    sources: list[Source]
    sets: dict[str, list[str]]
    patients: PatientTable | None
    reference: list[Source]
    sha256: dict[str, str]


def read_inputs(
    files: Sequence[Path], settings: SummarySettings, versions: Versions, attempts: Attempts
) -> Inputs:
    """Read the inputs but the values, and note the versions of all files.

    Args:
        files: the predictions.
        settings: the other files.
        versions: of all files that are read.
        attempts: notes predictions that cannot be read.

    Raises:
        BadInput: files that cannot be used or do not belong together.
        SomeFailed: no prediction can be read.
    """
    tables = [*settings.gene_sets, *([settings.patients] if settings.patients else [])]
    hashes = {str(path): versions.sha256(path) for path in tables}
    sets = read_gene_sets(settings.gene_sets)
    patients = None if settings.patients is None else read_patients(settings.patients)
    check_column_names(list(sets), patients, settings.domains)
    sources = []
    for file in files:
        with attempts.of(file.stem):
            sources.append(Source.read(file, versions))
    if not sources:
        attempts.check()
    reference = prediction_files(settings.reference) if settings.reference else []
    of_reference = [Source.read(path, versions) for path in reference]
    check_cohort(sources, of_reference)
    sources.sort(key=lambda source: source.slide)
    if patients is not None:
        _check_patients(sources, patients, settings.patients)
    return Inputs(sources, sets, patients, of_reference, hashes)


def _check_patients(sources: Sequence[Source], patients: PatientTable, path: Path | None) -> None:
    lost = [source.slide for source in sources if source.slide not in patients.patient_of]
    if lost:
        found = unquoted(f"no row of {count(len(lost), 'slide')}, such as {lost[:3]}")
        raise BadInput(path or "patients", "slides", found, "a patient for each slide")
