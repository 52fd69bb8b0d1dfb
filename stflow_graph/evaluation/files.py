"""Predictions and truth, read from files or taken from memory, grouped by slide and model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stflow_graph.data.normalise import TARGETS
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.evaluation.baselines import NAMES
from stflow_graph.evaluation.records import CEILING, TRUE_MEAN
from stflow_graph.io.atomic import check_name
from stflow_graph.io.cells import printable
from stflow_graph.io.expression import Expression, expression_of
from stflow_graph.io.gene_names import GeneMatching
from stflow_graph.io.h5ad import read_h5ad
from stflow_graph.io.predictions import Prediction, prediction_of, read_prediction
from stflow_graph.io.versions import unchanged

if TYPE_CHECKING:
    from anndata import AnnData

_MIN_GENES = 0.5  # fraction of the predicted genes that the truth must have
_RESERVED = (CEILING, TRUE_MEAN, *NAMES)


@dataclasses.dataclass(frozen=True)
class ModelPrediction:
    """A prediction of one slide by one model, with typed access to its provenance.

    Attributes:
        path: its file; in memory a name for messages.
        prediction: the prediction.
        sha256: hash of the file, None in memory.
    """

    path: Path
    prediction: Prediction
    sha256: str | None

    @property
    def slide(self) -> str:
        """The slide's name."""
        return self.prediction.slide

    @property
    def key(self) -> tuple[str, str]:
        """Data set and slide."""
        return self.text("dataset"), self.slide

    @property
    def train_slides(self) -> list[str]:
        """Slides that the model was trained on, empty if unknown."""
        names = self.prediction.provenance.get("train_slides") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadInput(self.path, "train_slides", names, "a list of slides")
        return names

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance, with the file itself."""
        return {**self.prediction.provenance, "file": str(self.path), "sha256": self.sha256}

    @property
    def masked(self) -> bool:
        """Whether slides may lack genes: those that lack some were masked in training."""
        return self.text("missing_genes") == "mask"

    def text(self, name: str) -> str:
        """Return a text of the provenance, "" if absent."""
        value = self.prediction.provenance.get(name)
        if not isinstance(value, str | None):
            raise BadInput(self.path, name, value, "text")
        return value or ""


Models = dict[str, ModelPrediction]  # the predictions of one slide by name of the model


def read_predictions(sources: Sequence[str | Path | AnnData]) -> dict[str, Models]:
    """Return the prediction of every model by label of the slide.

    Args:
        sources: files, folders of files, or predictions in memory.

    Raises:
        BadInput: not predictions, of several targets, or two of one slide by one model.
    """
    predictions = list(_read(sources))
    if not predictions:
        raise BadInput("predictions", "list", unquoted("none"), "at least one prediction")
    for item in predictions:
        _check(item, predictions[0])
    names = _model_names(predictions)
    keys = {item.key for item in predictions}
    qualified = len({slide for _, slide in keys}) < len(keys)
    slides: dict[str, Models] = {}
    for item, name in zip(predictions, names, strict=True):
        models = slides.setdefault("/".join(item.key) if qualified else item.slide, {})
        if name in models:
            found = unquoted(f"{item.slide!r} also in {models[name].path}")
            raise BadInput(item.path, "slide", found, "one prediction of a slide by a model")
        models[name] = item
    return slides


def _read(sources: Sequence[str | Path | AnnData]) -> Iterator[ModelPrediction]:
    for i, source in enumerate(sources):
        if not isinstance(source, str | Path):
            name = f"prediction {i}"
            yield ModelPrediction(Path(name), prediction_of(source, name), None)
            continue
        path = Path(source)
        files = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
        if not files:
            raise BadInput(path, "folder", unquoted("no .h5ad file"), "predictions")
        for file in files:
            with unchanged(file) as version:
                item = ModelPrediction(file, read_prediction(file), version.sha256(file))
            yield item


def _check(item: ModelPrediction, first: ModelPrediction) -> None:
    check_name(item.slide, item.path, "slide")
    for name in ("dataset", "encoder"):  # they become parts of paths
        if item.text(name):
            check_name(item.text(name), item.path, name)
    target, expected = item.text("target"), first.text("target")
    if target not in TARGETS:
        raise BadInput(item.path, "target", target, " or ".join(TARGETS))
    if target != expected:
        fix = "evaluate each target in a run of its own"
        raise BadInput(item.path, "target", target, f"{expected!r} as in {first.path}", fix)


def _model_names(predictions: Sequence[ModelPrediction]) -> list[str]:
    """Name models by denoiser, and by folder where several folders contain the same slides."""
    names = []
    for item in predictions:
        denoiser = item.text("denoiser")
        name = printable(denoiser) or "model"
        same = [other for other in predictions if other.text("denoiser") == denoiser]
        folders = {(other.key, other.path.resolve().parent) for other in same}
        if len(folders) > len({key for key, _ in folders}):
            short = _short_names({folder for _, folder in folders})
            name = f"{name} ({short[item.path.resolve().parent]})"
        names.append(f"{name} (model)" if name in _RESERVED else name)
    return names


def _short_names(folders: set[Path]) -> dict[Path, str]:
    """Return the paths without the parts that all share at their beginning or end."""
    parts = [folder.parts for folder in folders]
    start = len(os.path.commonprefix(parts))
    end = len(os.path.commonprefix([names[: start - 1 : -1] for names in parts]))
    short = {folder: "/".join(folder.parts[start : len(folder.parts) - end]) for folder in folders}
    return short if all(short.values()) else {folder: str(folder) for folder in folders}


def read_truth(
    truth: str | Path | AnnData | Mapping[str, AnnData],
    first: ModelPrediction,
    matching: GeneMatching,
) -> tuple[Expression, str, str | None]:
    """Return the counts of a prediction's slide, their file and its hash: "" and None in memory.

    Args:
        truth: see ``stages.evaluate``.
        first: a prediction of the slide.
        matching: how genes with other names are matched.
    """
    origin, file, digest = f"truth of {first.slide}", "", None
    if isinstance(truth, str | Path):
        origin = file = str(truth_file(Path(truth), *first.key))
        with unchanged(file) as version:
            truth, digest = read_h5ad(file), version.sha256(file)
    elif isinstance(truth, Mapping):
        if first.slide not in truth:
            raise BadInput("truth", "slide", list(truth), f"counts of slide {first.slide!r}")
        truth = truth[first.slide]
    genes = first.prediction.genes
    if first.masked:
        matching = dataclasses.replace(matching, missing="mask")
    counts = expression_of(truth, origin, genes, matching=matching, min_fraction=_MIN_GENES)
    return counts, file, digest


def truth_file(truth: Path, dataset: str, slide: str) -> Path:
    """Return a slide's expression: the file itself, or in a folder, HEST-bench root or data set.

    Raises:
        BadInput: there is none.
    """
    if truth.is_file():
        return truth
    folders = [truth, truth / "adata", *([truth / dataset / "adata"] if dataset else [])]
    for folder in folders:
        if (folder / f"{slide}.h5ad").is_file():
            return folder / f"{slide}.h5ad"
    raise BadInput(truth, "truth", unquoted(f"no {slide}.h5ad"), f"expression of slide {slide}")
