"""The probe stage: patch encoders compared by a regression on their embeddings, as HEST-bench."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.inputs import check_same_inputs, hash_inputs
from stflow_graph.data.load import check_one_width, load_sample
from stflow_graph.data.normalise import TARGETS
from stflow_graph.data.protocol import protocol_name
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import (
    Dataset,
    Fold,
    Sample,
    embedding_path,
    find_datasets,
    find_embedding,
    known_embedding,
)
from stflow_graph.encoders import Encoder, create_encoder
from stflow_graph.encoders.catalogue import canonical_name
from stflow_graph.errors import BadConfig, BadInput, attempt_each, unquoted
from stflow_graph.evaluation.baselines import Predictor, fit_forest, fit_hest_ridge
from stflow_graph.evaluation.hest_results import (
    results_datasets,
    results_encoders,
    results_fold,
    results_kfold,
)
from stflow_graph.io.atomic import check_name, read_json, sha256, write_json, write_text
from stflow_graph.preparation.cut_patches import Progress
from stflow_graph.preparation.embedding import EmbedSettings, embed_files
from stflow_graph.version import __version__

METHODS = ("ridge", "random-forest")


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """What is fitted on the embeddings; the defaults are HEST-bench's.

    Attributes:
        method: one of ``METHODS``.
        n_components: principal components of the standardised embeddings; None takes the
            embeddings as they are.
        alpha: L2 penalty of the ridge; None takes HEST's 100 / (columns · genes).
        gene_list: a file name in the data set's folder, or a path.
        target: one of ``data.normalise.TARGETS``.
        seed: of the randomised PCA and of the forest.
    """

    method: str = "ridge"
    n_components: int | None = 256
    alpha: float | None = None
    gene_list: str = "var_50genes.json"
    target: str = "log1p"
    seed: int = 1

    def __post_init__(self) -> None:
        for field, known in (("method", METHODS), ("target", TARGETS)):
            if getattr(self, field) not in known:
                raise BadConfig(f"{field} {getattr(self, field)!r}: expected {' or '.join(known)}")
        if self.alpha is not None and self.method != "ridge":
            raise BadConfig(f"alpha {self.alpha}: a {self.method} has none")

    def fit(self, train: Sequence[Slide]) -> Predictor:
        """Fit on training slides with ``y``."""
        if self.method == "ridge":
            return fit_hest_ridge(
                train, n_components=self.n_components, alpha=self.alpha, seed=self.seed
            )
        return fit_forest(train, n_components=self.n_components, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One encoder's score on one data set.

    Attributes:
        dataset: the data set's name.
        encoder: the encoder's name.
        fold_numbers: of the K splits.
        folds: ``[K]`` mean PCC over genes of each, over the spots of all its test slides.
        mean: over the folds.
        std: over the folds.
        n_embedded: slides that had to be embedded.
        complete_before: whether there was nothing left to do.
    """

    dataset: str
    encoder: str
    fold_numbers: list[int]
    folds: np.ndarray
    mean: float
    std: float
    n_embedded: int
    complete_before: bool


def probe(
    source_dataroot: str | Path,
    embed_dataroot: str | Path,
    out: str | Path,
    encoders: Sequence[str],
    settings: ProbeSettings = ProbeSettings(),
    *,
    datasets: Sequence[str] = (),
    allow_patient_overlap: bool = False,
    overwrite: bool = False,
    embed_settings: EmbedSettings | None = None,
    make_encoder: Callable[[str], Encoder] = create_encoder,
    progress: Progress | None = None,
    report: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """Score patch encoders on every fold of every data set, as HEST-bench does.

    Slides without embeddings are embedded first; what is there, in any layout, is used, and needs
    neither patches nor the encoder's weights. Writes ``out/<data set>/<encoder>/`` with
    ``split<i>/results.json`` and ``results_kfold.json``, ``out/<data set>/enc_results.json``,
    ``out/dataset_results.json`` and ``.csv``, all in HEST's form. Folds that are there are kept.

    Args:
        source_dataroot: a HEST-bench root or one data set folder.
        embed_dataroot: root of the embeddings.
        out: folder of the results.
        encoders: names or aliases; results have the names.
        settings: what is fitted.
        datasets: names of data sets; none means all.
        allow_patient_overlap: score also folds with a patient on both sides.
        overwrite: fit anew what is there; embeddings are kept.
        embed_settings: how missing embeddings are made; None takes the defaults.
        make_encoder: makes an encoder from its name, called only if embeddings are missing.
        progress: of embedding, called with (slide, spots done, spots in all).
        report: called with each cell as it is finished.

    Returns:
        A cell for each data set and encoder, in the order given.

    Raises:
        BadInput: data that cannot be used, or the only cell's cannot.
        BadConfig: ``out`` holds results of other settings or inputs.
        SomeFailed: some cells failed and are named; the others are written.
    """
    out = Path(out)
    asked, encoders = list(encoders), [canonical_name(name) for name in encoders]
    if not encoders or len(set(encoders)) < len(encoders):
        raise BadConfig(f"encoders {asked}: expected one or more, each once")
    for name in encoders:
        check_name(name, embed_dataroot, "encoder")
    found = find_datasets(source_dataroot, datasets)
    for dataset in found:
        dataset.training_folds(allow_patient_overlap=allow_patient_overlap)
        _check_own_files(dataset, embed_dataroot, encoders)
    # encoder by encoder, as a large one alone may fill the memory
    made, hash_file = functools.lru_cache(1)(make_encoder), functools.cache(sha256)
    cells: list[Cell] = []

    def run(dataset: Dataset, encoder: str) -> None:
        slides = _missing(dataset, embed_dataroot, encoder)
        if slides:
            jobs = [
                (s.patches_path, embedding_path(embed_dataroot, dataset.name, encoder, s.id))
                for s in slides
            ]
            how = embed_settings or EmbedSettings()
            embed_files(jobs, made(encoder), how, progress=progress)
        work = _Work(dataset, encoder, Path(embed_dataroot), settings, out, overwrite, hash_file)
        cells.append(dataclasses.replace(work.run(), n_embedded=len(slides)))
        if report:
            report(cells[-1])

    try:
        attempt_each([(f"{d.name}, {e}", partial(run, d, e)) for e in encoders for d in found])
    finally:
        place = {dataset.name: i for i, dataset in enumerate(found)}
        cells.sort(key=lambda cell: place[cell.dataset])
        _write_tables(out, cells)
    return cells


def _check_own_files(dataset: Dataset, root: str | Path, encoders: Sequence[str]) -> None:
    """Refuse one embedding file for two encoders: in the flat layout a path names none."""
    owner: dict[Path, str] = {}
    for encoder in encoders:
        for sample in dataset.samples():
            file = known_embedding(root, dataset.name, encoder, sample.id)
            if file is not None and owner.setdefault(file, encoder) != encoder:
                found = unquoted(f"the same file for {owner[file]} and {encoder}")
                fix = f"put the files in a folder named as their encoder, such as {encoder}/"
                raise BadInput(file, "encoder", found, "embeddings of one encoder", fix)


def _missing(dataset: Dataset, root: str | Path, encoder: str) -> list[Sample]:
    """Return the slides that must be embedded; each has its patches."""
    slides = [
        s for s in dataset.samples() if known_embedding(root, dataset.name, encoder, s.id) is None
    ]
    for sample in slides:
        if not sample.patches_path.is_file():
            find_embedding(root, dataset.name, encoder, sample.id)
    return slides


@dataclasses.dataclass(frozen=True)
class _Work:
    """A cell that is to be filled."""

    dataset: Dataset
    encoder: str
    embed_dataroot: Path
    settings: ProbeSettings
    out: Path
    overwrite: bool
    hash_file: Callable[[Path], str]

    def run(self) -> Cell:
        folder = self.out / self.dataset.name / self.encoder
        load = functools.cache(self._load)
        results, n_kept = [], 0
        folds = self.dataset.folds()
        for fold in folds:
            file = folder / f"split{fold.index}" / "results.json"
            provenance = self._provenance(fold)
            stored = None if self.overwrite else _stored(file, provenance)
            if stored is None:
                stored = {**self._score(fold, load), "provenance": provenance}
                write_json(file, stored)
            else:
                n_kept += 1
            results.append(stored)
        pearson = [
            {g["name"]: _nan(g["pearson_corr"]) for g in r["pearson_corrs"]} for r in results
        ]
        rule = protocol_name(self.dataset, self.settings.target, self.settings.gene_list)
        table = results_kfold(pearson) | {"protocol": rule}
        write_json(folder / "results_kfold.json", table)
        means = np.array([_nan(value) for value in table["mean_per_split"]])
        return Cell(
            self.dataset.name,
            self.encoder,
            [fold.index for fold in folds],
            means,
            _nan(table["pearson_mean"]),
            _nan(table["pearson_std"]),
            n_embedded=0,
            complete_before=n_kept == len(folds),
        )

    def _genes(self, fold: Fold) -> Path:
        return self.dataset.gene_list_path(self.settings.gene_list, fold.index)

    def _load(self, sample: Sample, genes: tuple[str, ...]) -> Slide:
        return load_sample(sample, self.embed_dataroot, self.encoder, genes, self.settings.target)

    def _score(self, fold: Fold, load: Callable[..., Slide]) -> dict[str, Any]:
        genes = tuple(read_gene_list(self._genes(fold)))
        train, test = ([load(s, genes) for s in side] for side in (fold.train, fold.test))
        check_one_width([*train, *test], self.embed_dataroot)
        predict = self.settings.fit(train)
        predicted = np.concatenate([predict(slide) for slide in test])
        return results_fold(genes, predicted, np.concatenate([slide.truth for slide in test]))

    def _provenance(self, fold: Fold) -> dict[str, Any]:
        inputs = hash_inputs(
            fold, self._genes(fold), self.embed_dataroot, self.encoder, self.hash_file
        )
        return {
            "settings": dataclasses.asdict(self.settings),
            "train_slides": [sample.id for sample in fold.train],
            "test_slides": [sample.id for sample in fold.test],
            "inputs": inputs,
            "version": __version__,
        }


def _stored(file: Path, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """Return a fold's scores if they are there."""
    if not file.exists():
        return None
    stored: dict[str, Any] = read_json(file)
    old, new = _flat(stored.get("provenance", {})), _flat(provenance)
    check_same_inputs(file, old, new, done="scored", redo="score anew")
    return stored


def _flat(provenance: dict[str, Any]) -> dict[str, Any]:
    sides = {key: provenance.get(key) for key in ("train_slides", "test_slides")}
    return {**provenance.get("settings", {}), **provenance.get("inputs", {}), **sides}


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


def _write_tables(out: Path, cells: Sequence[Cell]) -> None:
    """Write each data set's table of encoders, and the table of data sets."""
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for cell in cells:
        scores.setdefault(cell.dataset, {})[cell.encoder] = (cell.mean, cell.std)
    for dataset, of_encoders in scores.items():
        write_json(out / dataset / "enc_results.json", results_encoders(of_encoders))
    if scores:
        write_json(out / "dataset_results.json", results_datasets(scores))
        write_text(out / "dataset_results.csv", _csv(scores))


def _csv(scores: dict[str, dict[str, tuple[float, float]]]) -> str:
    encoders = dict.fromkeys(name for of_encoders in scores.values() for name in of_encoders)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["dataset", *(f"{name}_{what}" for name in encoders for what in ("mean", "std"))])
    for dataset, of_encoders in scores.items():
        pairs = (of_encoders.get(name, ("", "")) for name in encoders)
        rows.writerow([dataset, *(value for pair in pairs for value in pair)])
    return text.getvalue()
