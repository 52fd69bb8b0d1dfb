"""Spatial domains that are the same in all slides."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.io.prediction_file import PredictionFile, open_prediction
from stflow_graph.io.tables import table_file
from stflow_graph.stats.domains import (
    Components,
    SpotSample,
    fit_centres,
    nearest_centre,
    ranks_by_size,
    smooth,
)
from stflow_graph.stats.metrics import neighbour_mean
from stflow_graph.summary.cohort import Source
from stflow_graph.summary.settings import SummarySettings

MAX_FIT = 50_000  # spots that domains are fitted to
MAX_SAMPLED = 5_000  # spots of a plot
N_MARKERS = 5
_FIT_BYTES = 2**29
_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class Domains:
    """Domains of all slides.

    Attributes:
        labels: slide to the domain of each spot, ``[N]`` from 1 on, the largest is 1.
        genes: G genes that all slides have, which they are fitted to.
        components: of the fit.
        n_fit: number of spots that they are fitted to.
        sample: at most 5,000 spots.
    """

    labels: dict[str, np.ndarray]
    genes: list[str]
    components: Components
    n_fit: int
    sample: SpotSample

    def sizes(self, n_domains: int) -> np.ndarray:
        """Return the number of spots ``[K]`` of each domain."""
        counts = [np.bincount(part, minlength=n_domains + 1) for part in self.labels.values()]
        return np.sum(counts, axis=0)[1:]


def find_domains(sources: Sequence[Source], settings: SummarySettings) -> Domains:
    """Cluster the spots of all slides by expected expression.

    k-means of the principal components, which are fitted to at most 50,000 spots, as many of each
    slide; every spot then takes the nearest centre. Slides are read one at a time.

    Args:
        sources: the slides' predictions, in an order that does not depend on the user's.
        settings: the number of domains, smoothing and seed.

    Raises:
        BadInput: no gene is in all slides.
        BadConfig: more domains than different spots.
    """
    genes = _common_genes(sources)
    n_fit = min(MAX_FIT, _FIT_BYTES // (8 * len(genes)))
    limit = max(1, n_fit // len(sources))
    rows, parts = {}, []
    for source in sources:
        with open_prediction(source.path) as file:
            rows[source.slide] = _some_rows(source.slide, len(file), limit, settings.seed)
            parts.append(_values_of_rows(file, genes, rows[source.slide]))
    components = Components.fit(np.concatenate(parts), settings.seed)
    fitted = [_scores(s, genes, components, settings.smoothing)[rows[s.slide]] for s in sources]
    try:
        centres = fit_centres(np.concatenate(fitted), settings.domains, settings.seed)
    except ValueError as error:
        raise BadConfig(f"domains: {error}. Fix: fewer domains, or more slides") from None
    labels, sampler = dict[str, np.ndarray](), _Sampler(sources, settings.seed)
    for source in sources:
        scores = _scores(source, genes, components, settings.smoothing)
        labels[source.slide] = nearest_centre(scores, centres).astype(np.uint8)
        sampler.see(source.slide, scores)
    sizes = sum(np.bincount(part, minlength=settings.domains) for part in labels.values())
    ranks = ranks_by_size(np.asarray(sizes), centres).astype(np.uint8)
    labels = {slide: ranks[part] for slide, part in labels.items()}
    return Domains(labels, genes, components, sum(map(len, parts)), sampler.sample(labels))


class _Sampler:
    """Keeps some spots of each slide; of more slides than spots, one of some."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self._limit, self._seed = max(1, MAX_SAMPLED // len(sources)), seed
        chosen = _some_rows("", len(sources), MAX_SAMPLED, seed)
        self._slides = {sources[i].slide for i in chosen}
        self._rows: dict[str, np.ndarray] = {}
        self._features: list[np.ndarray] = []

    def see(self, slide: str, scores: np.ndarray) -> None:
        if slide in self._slides:
            rows = _some_rows(slide, len(scores), self._limit, self._seed)
            self._rows[slide] = rows
            self._features.append(scores[rows])

    def sample(self, labels: Mapping[str, np.ndarray]) -> SpotSample:
        return SpotSample(
            list(self._rows),
            np.repeat(np.arange(len(self._rows)), list(map(len, self._rows.values()))),
            np.concatenate([labels[slide][rows] for slide, rows in self._rows.items()]),
            np.concatenate(self._features),
        )


def _common_genes(sources: Sequence[Source]) -> list[str]:
    common: list[str] = []
    for i, source in enumerate(sources):
        with open_prediction(source.path) as file:
            there = set(file.genes)
            common = [gene for gene in (common if i else file.genes) if gene in there]
        if not common:
            found = unquoted("no gene that all slides before have")
            raise BadInput(source.path, "var_names", found, "genes in common, for domains")
    return common


def _some_rows(slide: str, n: int, limit: int, seed: int) -> np.ndarray:
    """Return rows to fit to, ascending, which other slides do not change for a given limit."""
    if n <= limit:
        return np.arange(n)
    rng = np.random.default_rng([seed, zlib.crc32(slide.encode())])
    return np.sort(rng.choice(n, limit, replace=False))


def _columns(file: PredictionFile, genes: Sequence[str]) -> np.ndarray:
    place = {gene: i for i, gene in enumerate(file.genes)}
    return np.array([place[gene] for gene in genes])


def _values_of_rows(file: PredictionFile, genes: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Return the values ``[n, G]`` of ascending rows."""
    columns, result = _columns(file, genes), np.empty((len(rows), len(genes)), np.float32)
    for block, values in file.blocks():
        low, high = np.searchsorted(rows, [block.start, block.stop])
        result[low:high] = values[np.ix_(rows[low:high] - block.start, columns)]
    return result


def _scores(
    source: Source, genes: Sequence[str], components: Components, smoothing: int
) -> np.ndarray:
    """Return the components ``[N, P]`` of a slide's spots, averaged over neighbours."""
    with open_prediction(source.path) as file:
        columns = _columns(file, genes)
        scores = np.empty((len(file), len(components.axes)), np.float32)
        for rows, values in file.blocks():
            for start in range(0, len(values), _ROWS):  # float64 copies are made
                part = values[start : start + _ROWS, columns]
                first = rows.start + start
                scores[first : first + len(part)] = components.scores(part)
        return smooth(scores, neighbour_mean(file.coords), smoothing) if smoothing else scores


def write_domains(source: Source, labels: np.ndarray, path: Path) -> None:
    """Write the domain of each spot with its barcode and place, level-0 px."""
    with open_prediction(source.path) as file, table_file(path) as append:
        for start in range(0, len(file), _ROWS):
            rows = slice(start, start + _ROWS)
            x, y = file.coords[rows].T
            columns = {"barcode": file.barcodes[rows], "x": x, "y": y, "domain": labels[rows]}
            append(pd.DataFrame(columns))


def top_markers(table: pd.DataFrame, sizes: np.ndarray) -> list[list[tuple[str, float]]]:
    """Return the genes of each domain that are highest above the other domains' spots.

    The mean of all spots is that of the domain's share s and of the others, so the difference
    from the others is the difference from all over 1 - s.

    Args:
        table: as of :func:`domain_genes`.
        sizes: ``[K]`` numbers of spots.

    Returns:
        Of each domain up to five names with their differences, the largest first; those below 0
        and those of a domain without spots, or with all of them, are left out.
    """
    result: list[list[tuple[str, float]]] = []
    for domain, size in enumerate(sizes, 1):
        rows = table[table["domain"] == domain]
        if not 0 < size < sizes.sum():
            result.append([])
            continue
        above = rows["difference"].to_numpy() / (1 - size / sizes.sum())
        order = np.argsort(-above, kind="stable")[:N_MARKERS]
        genes = rows["gene"].tolist()
        result.append([(genes[i], float(above[i])) for i in order if above[i] > 0])
    return result


def domain_genes(sources: Sequence[Source], domains: Domains, n_domains: int) -> pd.DataFrame:
    """Return each gene's mean over the spots of a domain, and its difference from all spots'.

    Args:
        sources: the slides' predictions.
        domains: their domains.
        n_domains: K.

    Returns:
        A row a domain and gene: domain, gene, mean, difference; NaN for a domain without spots.
    """
    sums, counts = np.zeros((n_domains, len(domains.genes))), np.zeros(n_domains)
    for source in sources:
        labels = domains.labels[source.slide].astype(np.int64) - 1
        counts += np.bincount(labels, minlength=n_domains)
        with open_prediction(source.path) as file:
            columns = _columns(file, domains.genes)
            for rows, values in file.blocks():
                for k in range(n_domains):
                    spots = np.flatnonzero(labels[rows] == k)
                    sums[k] += values[np.ix_(spots, columns)].sum(axis=0, dtype=np.float64)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)
    overall = sums.sum(axis=0) / counts.sum()
    n_genes = len(domains.genes)
    return pd.DataFrame(
        {
            "domain": np.repeat(np.arange(1, n_domains + 1), n_genes),
            "gene": domains.genes * n_domains,
            "mean": means.ravel(),
            "difference": (means - overall).ravel(),
        }
    )
