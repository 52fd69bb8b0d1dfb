"""Probe of a patch encoder: regression on its embeddings, scored per fold as in HEST-bench."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.data.genes import check_not_chosen_on, read_gene_list
from stflow_graph.data.inputs import check_same_inputs, hash_inputs
from stflow_graph.data.load import check_one_width, load_sample
from stflow_graph.data.normalise import TARGETS
from stflow_graph.data.protocol import protocol_name
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import Dataset, Fold, Sample
from stflow_graph.errors import BadConfig
from stflow_graph.evaluation.baselines import Predictor, fit_forest, fit_ridge
from stflow_graph.evaluation.hest_results import results_fold, results_kfold
from stflow_graph.io.atomic import read_json, sha256, write_json
from stflow_graph.stats.metrics import mean_of_defined, std_of_defined
from stflow_graph.version import __version__

METHODS = ("ridge", "random-forest")


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """Regression on the embeddings; the defaults are HEST-bench's.

    Attributes:
        method: one of ``METHODS``.
        n_components: principal components of the standardised embeddings; None fits the raw
            embeddings.
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
        for field, choices in (("method", METHODS), ("target", TARGETS)):
            value = getattr(self, field)
            if value not in choices:
                raise BadConfig(f"{field} {value!r}: expected {' or '.join(choices)}")
        if self.alpha is not None and self.method != "ridge":
            raise BadConfig(f"alpha {self.alpha}: a {self.method} has none")

    def fit(self, train: Sequence[Slide]) -> Predictor:
        """Fit on training slides with ``y``."""
        n_components, seed = self.n_components, self.seed
        if self.method == "ridge":
            return fit_ridge(
                train, n_components=n_components, alpha=self.alpha, seed=seed, exact=False
            )
        return fit_forest(train, n_components=n_components, seed=seed)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Score of one encoder on one data set.

    Attributes:
        dataset: name of the data set.
        encoder: name of the encoder.
        fold_numbers: of the K splits.
        folds: ``[K]`` mean PCC over genes, over the spots of all test slides of a fold.
        n_embedded: number of slides embedded in this run.
        up_to_date: whether all folds had been scored before.
    """

    dataset: str
    encoder: str
    fold_numbers: list[int]
    folds: np.ndarray
    n_embedded: int
    up_to_date: bool

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return mean_of_defined(self.folds)

    @property
    def std(self) -> float:
        """Standard deviation over the folds."""
        return std_of_defined(self.folds)


@dataclasses.dataclass(frozen=True)
class EncoderProbe:
    """Probe of one encoder on the folds of one data set.

    Attributes:
        dataset: the data set on disk.
        encoder: name of the encoder.
        embed_dataroot: root of the embeddings.
        settings: of the regression.
        hash_file: hash of a file's content; may be cached over several probes.
    """

    dataset: Dataset
    encoder: str
    embed_dataroot: Path
    settings: ProbeSettings
    hash_file: Callable[[Path], str] = sha256

    def run(self, folder: Path, *, overwrite: bool = False) -> Cell:
        """Score every fold and write ``split<i>/results.json`` and ``results_kfold.json``.

        Args:
            folder: of the results; folds with results there are skipped.
            overwrite: score these again.

        Raises:
            BadInput: files that cannot be used.
            BadConfig: the folder holds results of other settings or inputs.
        """
        load = functools.cache(self._load)
        results, n_skipped = [], 0
        folds = self.dataset.folds()
        for fold in folds:
            file = folder / f"split{fold.index}" / "results.json"
            provenance = self._provenance(fold)
            stored = None if overwrite else _stored(file, provenance)
            if stored is None:
                stored = {**self._score(fold, load), "provenance": provenance}
                write_json(file, stored)
            else:
                n_skipped += 1
            results.append(stored)
        pearson = [{g["name"]: g["pearson_corr"] for g in r["pearson_corrs"]} for r in results]
        protocol = protocol_name(self.dataset, self.settings.target, self.settings.gene_list)
        table = results_kfold(pearson) | {"protocol": protocol}
        write_json(folder / "results_kfold.json", table)
        return Cell(
            self.dataset.name,
            self.encoder,
            [fold.index or 0 for fold in folds],
            np.array(table["mean_per_split"], dtype=float),
            n_embedded=0,
            up_to_date=n_skipped == len(folds),
        )

    def _genes(self, fold: Fold) -> Path:
        return self.dataset.gene_list_path(self.settings.gene_list, fold)

    def _load(self, sample: Sample, genes: tuple[str, ...]) -> Slide:
        return load_sample(sample, self.embed_dataroot, self.encoder, genes, self.settings.target)

    def _score(self, fold: Fold, load: Callable[..., Slide]) -> dict[str, Any]:
        genes = tuple(read_gene_list(self._genes(fold)))
        check_not_chosen_on(self._genes(fold), [sample.id for sample in fold.test])
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
    """Return the stored scores of a fold, None if there are none."""
    if not file.exists():
        return None
    stored: dict[str, Any] = read_json(file)
    old, new = _flat(stored.get("provenance", {})), _flat(provenance)
    check_same_inputs(file, old, new, done="scored", redo="score anew")
    return stored


def _flat(provenance: dict[str, Any]) -> dict[str, Any]:
    return {**provenance.get("settings", {}), **provenance.get("inputs", {})}
