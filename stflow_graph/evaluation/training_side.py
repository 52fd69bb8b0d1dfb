"""The training slides behind the models of a slide, and baselines fitted on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stflow_graph.data.barcodes import rows_of
from stflow_graph.data.load import load_sample, load_slide
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import Dataset, find_datasets, find_embedding
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.evaluation.baselines import (
    DARKNESS,
    Predictor,
    darkness,
    fit_baselines,
)
from stflow_graph.evaluation.files import ModelPrediction, Models
from stflow_graph.evaluation.records import SlideEvaluation
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.stats.panels import take_genes


@dataclasses.dataclass(frozen=True)
class TrainingSide:
    """The training slides of a fold's models, on disk.

    Attributes:
        dataset: the data set on disk.
        embed_dataroot: root of the embeddings.
        encoder: the encoder's name.
        target: see ``data.normalise``.
        genes: names of the predicted genes that baselines predict too.
        slides: names of the training slides.
        matching: how genes with other names are matched.
    """

    dataset: Dataset
    embed_dataroot: str
    encoder: str
    target: str
    genes: tuple[str, ...]
    slides: tuple[str, ...]
    matching: GeneMatching = DEFAULT_MATCHING

    def load(self) -> list[Slide]:
        """Read the training slides with their expression.

        Raises:
            BadInput: none are named, or some are missing from the data set's splits.
        """
        samples = {sample.id: sample for sample in self.dataset.samples()}
        absent = [name for name in self.slides if name not in samples]
        if absent or not self.slides:
            found = unquoted(f"{len(absent)} of {len(self.slides)} absent, such as {absent[:3]}")
            raise BadInput(self.dataset.path, "splits", found, "the models' training slides")
        options = self.embed_dataroot, self.encoder, self.genes, self.target, self.matching
        return [load_sample(samples[name], *options) for name in self.slides]

    def load_test_slide(self, name: str, barcodes: Sequence[str], coords: np.ndarray) -> Slide:
        """Read the embeddings of N spots of another slide, without expression.

        Args:
            name: the slide.
            barcodes: N spots, in this order.
            coords: ``[N, 2]`` their positions.

        Raises:
            BadInput: a spot has no embedding.
        """
        file = find_embedding(self.embed_dataroot, self.dataset.name, self.encoder, name)
        slide = load_slide(file)
        rows = rows_of(barcodes, slide.barcodes, file, "barcodes")
        return dataclasses.replace(slide, x=slide.x[rows], coords=coords, barcodes=list(barcodes))


def add_baselines(
    slides: Sequence[SlideEvaluation],
    predictions: Mapping[str, Models],
    source_dataroot: str | Path | None,
    embed_dataroot: str | Path | None,
    matching: GeneMatching,
    *,
    slow: bool,
    seed: int,
    report: Callable[[str], None],
) -> list[str]:
    """Add the baselines' predictions to each slide, fitted once per fold.

    Args:
        slides: aligned slides.
        predictions: their models by the slides' labels.
        source_dataroot: root with the training slides.
        embed_dataroot: root with their embeddings.
        matching: how genes with other names are matched.
        slow: whether those of ``baselines.SLOW`` are among them.
        seed: of the baselines.
        report: called with a line of progress per slide.

    Returns:
        Warnings about baselines that are missing.

    Raises:
        BadInput: a root is None, models of one slide with different training slides or encoders,
            or files that cannot be used.
    """

    @functools.cache
    def fitted(side: TrainingSide) -> dict[str, Predictor]:
        return fit_baselines(side.load(), slow=slow, seed=seed)

    notes = []
    masking = dataclasses.replace(matching, missing="mask")
    for slide in slides:
        report(f"baselines of {slide.name}")
        models = list(predictions[slide.name].values())
        side = _training_side(models, source_dataroot, embed_dataroot)
        if models[0].masked:  # slides that lack different genes share a fit of all genes
            genes, rules = side.genes, masking
        else:
            genes, rules = tuple(slide.genes), matching
        side = dataclasses.replace(side, genes=genes, matching=rules)
        if slide.id in side.slides:
            notes.append(f"{slide.name}: no baselines, as they would be fitted on this slide")
            continue
        predictors = fitted(side)
        embedded = side.load_test_slide(slide.id, slide.barcodes, slide.coords)
        columns = pd.Index(genes).get_indexer(slide.genes)
        for name, predictor in predictors.items():
            slide.predictions[name] = take_genes(predictor(embedded), columns)
        patches = side.dataset.path / "patches" / f"{slide.id}.h5"
        if patches.is_file():
            dark = darkness(patches, slide.barcodes)
            slide.predictions[DARKNESS] = np.repeat(dark[:, None], len(slide.genes), axis=1)
        else:
            notes.append(f"{slide.name}: no row darkness, as there is no file {patches}")
    return notes


def _training_side(
    models: Sequence[ModelPrediction], source: str | Path | None, embed: str | Path | None
) -> TrainingSide:
    """Return the training side of a slide's models, which must be the same for all."""
    first = models[0]
    for other in models[1:]:
        for name in ("train_slides", "encoder"):
            found, expected = (m.prediction.provenance.get(name) for m in (other, first))
            if found != expected:
                fix = "evaluate them in runs of their own, or without --baselines"
                raise BadInput(other.path, name, found, f"the same as in {first.path}", fix)
    return TrainingSide(
        _dataset(first, _given(first, "source_dataroot", source)),
        _given(first, "embed_dataroot", embed),
        first.text("encoder"),
        first.text("target"),
        tuple(first.prediction.genes),
        tuple(first.train_slides),
    )


def _given(item: ModelPrediction, name: str, root: str | Path | None) -> str:
    """Return a root that the user has given.

    The one in the provenance is only shown: predictions may be a stranger's, and what lies below a
    root is opened.
    """
    if root is not None:
        return str(root)
    option, recorded = f"--{name.replace('_', '-')}", item.text(name)
    found = recorded or None
    fix = f"give {option}, which the files of the baselines are read from"
    raise BadInput(item.path, name, found, f"a root given with {option}", fix)


def _dataset(item: ModelPrediction, root: str) -> Dataset:
    name = item.text("dataset")
    # a data set folder may have been renamed since
    datasets = find_datasets(root, [name] if name and not (Path(root) / "splits").is_dir() else [])
    if len(datasets) > 1:
        raise BadInput(item.path, "dataset", None, f"a data set in {root}")
    return datasets[0]
