"""Writing a summary: its tables, slide by slide, and ``summary.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import sklearn

from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.prediction_file import open_prediction
from stflow_graph.io.sealed_json import write_sealed
from stflow_graph.io.tables import table_file, write_table
from stflow_graph.stats.weighted_means import WeightedMeans
from stflow_graph.summary.cohort import Source, cohort_notes, first_names
from stflow_graph.summary.domains import Domains, domain_genes, find_domains, write_domains
from stflow_graph.summary.inputs import Attempts, Inputs
from stflow_graph.summary.reference import PROBABILITIES, reference_quantiles
from stflow_graph.summary.settings import SummarySettings
from stflow_graph.summary.slide import LEVEL, SlideSummary, summarise_slide
from stflow_graph.summary.tables import PATIENT, patient_table, slide_table
from stflow_graph.version import __version__

FORMAT = "stflow_graph.summary/1"
JSON = "summary.json"
DOMAINS = "domains"
TABLES = {
    "slides": "a row a slide: counts, shares of domains, means of gene sets",
    "genes": "a row a slide and gene: mean over spots of expected expression with its interval, "
    "standard deviation over spots, share of spots at 0, Moran's I, expected correlation",
    "gene_sets": "a row a slide and gene set: mean over genes and spots with its interval",
    "domains/<slide>": "a row a spot: barcode, place in level-0 pixels, domain",
    "domain_genes": "a row a domain and gene: mean over spots, difference from all spots",
    "patients": "a row a patient: given columns, and means over slides weighted by spots",
    "patient_genes": "a row a patient, a column a gene: means over slides weighted by spots",
}


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        slides: the table of slides.
        patients: that of patients, if any.
        content: of ``summary.json``.
        sources: the slides' predictions.
        n_genes: of all slides together.
        gene_sets: the table of gene sets, if any.
        domains: of the spots, if any.
        domain_genes: the table of domains and genes, if any.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame | None
    content: dict[str, Any]
    sources: list[Source]
    n_genes: int
    gene_sets: pd.DataFrame | None
    domains: Domains | None
    domain_genes: pd.DataFrame | None


def write_summary(
    folder: Path,
    inputs: Inputs,
    settings: SummarySettings,
    attempts: Attempts,
    report: Callable[[str], None],
) -> Written:
    """Write all files of a summary into a folder.

    Args:
        folder: an empty folder.
        inputs: the inputs.
        settings: the settings.
        attempts: notes slides that fail, which are left out.
        report: called with the name of each step.

    Raises:
        BadInput: no gene of any gene set is there, or no gene is in all slides, for domains.
        SomeFailed: all slides failed.
    """
    save = _Saver(folder, settings.format)
    genes = _write_genes(save, inputs, attempts, report)
    sets, lost = _present_sets(inputs, settings, genes.summaries)
    if sets is not None:
        save("gene_sets", sets)
    domains, of_domains = _write_domains(save, genes.sources, settings, report)
    labels = None if domains is None else domains.labels
    slides = slide_table(genes.rows(), sets, labels, settings.domains, inputs.patients)
    save("slides", slides)
    patients = None if inputs.patients is None else patient_table(slides, inputs.patients)
    if patients is not None:
        save("patients", patients)
        save("patient_genes", genes.patient_genes())
    content = _content(inputs, settings, genes, domains, save.names)
    content["left_out"] = _left_out(inputs, attempts, lost)
    content["notes"] = _notes(genes, lost, len(inputs.sets))
    write_sealed(folder / JSON, FORMAT, content)
    content = {"format": FORMAT, **content}
    n_genes = len(genes.names)
    return Written(slides, patients, content, genes.sources, n_genes, sets, domains, of_domains)


class _Saver:
    """Writes tables into a folder, and keeps their names."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder = folder
        self.names: list[str] = []
        self._ending = ending

    def __call__(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.path(name), table)

    def path(self, name: str) -> Path:
        """Return the path of a table, which is going to be written."""
        self.names.append(name)
        return self.folder / f"{name}.{self._ending}"


@dataclasses.dataclass
class _Genes:
    """The slides that were summarised, and what is kept of their genes.

    Attributes:
        sources: their predictions.
        summaries: their numbers.
        names: all genes.
        means: of patients.
        patients: of the slides.
    """

    sources: list[Source] = dataclasses.field(default_factory=list)
    summaries: list[SlideSummary] = dataclasses.field(default_factory=list)
    names: dict[str, None] = dataclasses.field(default_factory=dict)
    means: WeightedMeans = dataclasses.field(default_factory=WeightedMeans)
    patients: set[str] = dataclasses.field(default_factory=set)

    def rows(self) -> list[dict[str, object]]:
        """Return what the table of slides begins with."""
        return [
            {
                "slide": source.slide,
                "dataset": source.dataset,
                "in_training": source.in_training,
                **summary.counts,
            }
            for source, summary in zip(self.sources, self.summaries, strict=True)
        ]

    def patient_genes(self) -> pd.DataFrame:
        """Return the means of genes, a row a patient."""
        patients = sorted(self.patients)
        table = self.means.table(patients)
        if PATIENT in table:
            expected = "no gene of the name of a column"
            raise BadInput(self.sources[0].path, "var_names", PATIENT, expected)
        table.insert(0, PATIENT, patients)
        return table


def _write_genes(
    save: _Saver, inputs: Inputs, attempts: Attempts, report: Callable[[str], None]
) -> _Genes:
    """Summarise each slide and append its genes to their table."""
    quantiles = None
    if inputs.reference:
        report("reading the reference")
        quantiles = reference_quantiles(inputs.reference)
    result = _Genes()
    with table_file(save.path("genes")) as append:
        for source in inputs.sources:
            report(f"reading {source.slide}")
            with attempts.of(source.slide):
                with open_prediction(source.path) as file:
                    summary = summarise_slide(file, inputs.sets, quantiles)
                table = summary.genes.copy(deep=False)
                table.insert(0, "slide", source.slide)
                append(table)
                _keep(result, source, summary, inputs)
        if not result.sources:
            attempts.check()
    return result


def _keep(result: _Genes, source: Source, summary: SlideSummary, inputs: Inputs) -> None:
    names = summary.genes["gene"].tolist()
    result.names |= dict.fromkeys(names)
    if inputs.patients is not None:
        patient = inputs.patients.patient_of[source.slide]
        result.means.add(patient, names, summary.genes["mean"].to_numpy(), summary.n_spots)
        result.patients.add(patient)
    result.sources.append(source)
    # 20,000 genes of 1,000 slides are on the disk, and take too much memory
    result.summaries.append(dataclasses.replace(summary, genes=summary.genes[["morans_i"]]))


def _present_sets(
    inputs: Inputs, settings: SummarySettings, summaries: Sequence[SlideSummary]
) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the table of gene sets, and the sets of which no slide has a gene: left out."""
    if not inputs.sets:
        return None, []
    table = pd.concat([each.gene_sets.assign(slide=each.slide) for each in summaries])
    there = set(table.loc[table["n_present"] > 0, "gene_set"])
    if not there:
        found = unquoted(f"no gene of {count(len(inputs.sets), 'set')} in any prediction")
        raise BadInput(settings.gene_sets[0], "genes", found, "genes that the model predicts")
    table = table[table["gene_set"].isin(there)]
    lost = [name for name in inputs.sets if name not in there]
    return table[["slide", *table.columns.drop("slide")]], lost


def _write_domains(
    save: _Saver,
    sources: Sequence[Source],
    settings: SummarySettings,
    report: Callable[[str], None],
) -> tuple[Domains, pd.DataFrame] | tuple[None, None]:
    if not settings.domains:
        return None, None
    report("finding domains")
    domains = find_domains(sources, settings)
    (save.folder / DOMAINS).mkdir()
    for source in sources:
        path = save.folder / DOMAINS / f"{source.slide}.{settings.format}"
        write_domains(source, domains.labels[source.slide], path)
    save.names.append(f"{DOMAINS}/<slide>")
    table = domain_genes(sources, domains, settings.domains)
    save("domain_genes", table)
    return domains, table


def _left_out(inputs: Inputs, attempts: Attempts, lost: list[str]) -> dict[str, Any]:
    """Return what of the inputs, or of what could be computed, is in no table."""
    left_out: dict[str, Any] = {"slides": attempts.failed, "gene_sets": lost}
    if (patients := inputs.patients) is not None:
        slides = {source.slide for source in inputs.sources}
        left_out |= {
            "columns that differ among slides of a patient": patients.varying,
            "slides of the table of patients without a prediction": sorted(
                patients.patient_of.keys() - slides
            ),
        }
    return {name: value for name, value in left_out.items() if value}


def _notes(genes: _Genes, lost: Sequence[str], n_sets: int) -> list[str]:
    notes = cohort_notes(genes.sources)
    if lost:
        notes.append(
            f"{len(lost)} of {n_sets} gene sets left out, as no prediction has any of their genes "
            f"({first_names(lost)})"
        )
    if n := max(summary.n_renamed for summary in genes.summaries):
        notes.append(f"{n} genes match those of gene sets in another case or Ensembl version")
    if differing := [s.slide for s in genes.summaries if len(s.genes) < len(genes.names)]:
        notes.append(
            f"{len(differing)} slides lack some of {len(genes.names)} genes "
            f"({first_names(differing)}): means of gene sets and patients are of those there"
        )
    return notes


def _content(
    inputs: Inputs,
    settings: SummarySettings,
    genes: _Genes,
    domains: Domains | None,
    tables: Sequence[str],
) -> dict[str, Any]:
    """Return settings, hashes of inputs and the meaning of the tables."""
    packages = {"numpy": np, "pandas": pd, "scipy": scipy, "scikit-learn": sklearn}
    chosen = {
        "domains": settings.domains,
        "smoothing": settings.smoothing,
        "seed": settings.seed,
        "format": settings.format,
    }
    content: dict[str, Any] = {
        "version": __version__,
        "packages": {name: module.__version__ for name, module in packages.items()},
        "target": genes.sources[0].target,
        "settings": chosen,
        "tables": {
            f"{name}.{settings.format}": text for name, text in TABLES.items() if name in tables
        },
        "interval": f"{LEVEL:.0%}, of the means over the spots of each sample",
        "slides": {
            source.slide: _facts(source) | {"n_samples": summary.n_samples}
            for source, summary in zip(genes.sources, genes.summaries, strict=True)
        },
        "files": inputs.sha256,
    }
    if inputs.reference:
        sources = {str(source.path): source.sha256 for source in inputs.reference}
        content["reference"] = {"quantiles": list(PROBABILITIES), "files": sources}
    if domains is not None:
        content["domains"] = {
            "method": "k-means of principal components of expected expression, all slides "
            "together; 1 is the largest",
            "n_spots_fitted": domains.n_fit,
            "n_genes": len(domains.genes),
            "n_genes_not_in_all_slides": len(genes.names) - len(domains.genes),
            "explained_variance": [round(float(x), 6) for x in domains.components.explained],
        }
    return content


def _facts(source: Source) -> dict[str, Any]:
    names = ("dataset", "checkpoint_sha256", "fold", "protocol", "seed")
    stored = {name: source.provenance.get(name) for name in names}
    return {"file": str(source.path), "sha256": source.sha256, **stored}
