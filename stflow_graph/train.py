"""The train stage: every fold of a data set, resumable, choosing on training slides alone."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric

from stflow_graph import __version__
from stflow_graph.build import build_denoiser
from stflow_graph.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stflow_graph.config import Config
from stflow_graph.data.genes import read_gene_list
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.regions import split_validation
from stflow_graph.data.slide import Slide, load_sample
from stflow_graph.data.splits import Dataset, Fold, Sample, find_datasets, find_embedding
from stflow_graph.errors import BadConfig, BadInput, plain
from stflow_graph.fit import EpochRecord, Fitted, fit
from stflow_graph.io.atomic import read_json, sha256, write_json, write_text
from stflow_graph.metrics import pearson_per_gene, results_kfold
from stflow_graph.predict import check_spots, pick_device, predict, scaled_data, slide_data
from stflow_graph.tracking import Tracker


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, reported after every epoch."""

    dataset: str
    fold: int
    folder: Path
    epoch: EpochRecord


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """A trained fold.

    Attributes:
        dataset: the data set's name.
        fold: the split's number.
        folder: where its checkpoint is.
        best: the epoch chosen on the validation part.
        test_pearson: for each test slide, ``[G]`` PCC, NaN for constant genes.
        complete_before: whether there was nothing left to do.
    """

    dataset: str
    fold: int
    folder: Path
    best: EpochRecord
    test_pearson: dict[str, np.ndarray]
    complete_before: bool

    @property
    def mean_test_pearson(self) -> float:
        """The mean PCC over test slides and genes."""
        return float(np.mean([np.nanmean(values) for values in self.test_pearson.values()]))


Report = Callable[[Progress], None]


def train(
    config: Config, out: str | Path, *, overwrite: bool = False, report: Report | None = None
) -> list[FoldResult]:
    """Train a denoiser on every fold of every data set and score it on the fold's test slides.

    Writes ``out/fold<i>/`` (with several data sets ``out/<data set>/fold<i>/``): ``checkpoint/``,
    ``history.csv``, ``config.toml``, ``provenance.json``, ``result.json``, TensorBoard logs; and
    ``results_kfold.json`` in HEST's form. A run that was stopped goes on where it was; complete
    folds are left as they are. The test slides are read after training has ended.

    Args:
        config: the resolved configuration.
        out: the run's folder.
        overwrite: train anew where ``out`` holds a run of another configuration.
        report: called after every epoch.

    Raises:
        BadInput: data that cannot be used.
        BadConfig: ``out`` holds a run of another configuration, or a fold does not exist.
        Diverged: a loss that is not finite.
    """
    out = Path(out)
    datasets = find_datasets(config.data.source_dataroot, config.data.datasets)
    work = [(d, fold) for d in datasets for fold in _wanted_folds(d, config.train.folds)]
    _claim(out, config, overwrite)
    results = []
    for dataset, fold in work:
        parent = out if len(datasets) == 1 else out / dataset.name
        folder = parent / f"fold{fold.index}"
        results.append(_train_fold(dataset, fold, config, folder, report))
        done = [r for r in results if r.dataset == dataset.name]
        genes = read_gene_list(dataset.gene_list_path(config.data.gene_list))
        table = [np.stack(list(result.test_pearson.values())) for result in done]
        per_fold = [_mean_over_slides(values) for values in table]
        write_json(parent / "results_kfold.json", results_kfold(genes, per_fold))
    return results


def _mean_over_slides(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _wanted_folds(dataset: Dataset, wanted: Sequence[int]) -> list[Fold]:
    folds = dataset.folds()
    absent = sorted(set(wanted) - {fold.index for fold in folds})
    if absent:
        known = ", ".join(str(fold.index) for fold in folds)
        raise BadConfig(f"train.folds: {absent} not in {dataset.name}, which has folds {known}")
    return [fold for fold in folds if not wanted or fold.index in wanted]


def _claim(out: Path, config: Config, overwrite: bool) -> None:
    """Refuse to go on with a run of another configuration; ``epochs`` and ``folds`` may differ."""
    file = out / "run.json"
    if file.exists() and not overwrite:
        differences = _differences(read_json(file).get("config", {}), _identity(config))
        if differences:
            shown = "; ".join(differences[:5])
            raise BadConfig(
                f"{out}: holds a run with {shown}. Fix: another --out, or --overwrite to replace it"
            )
    if overwrite:
        for state in out.glob("**/fold*/state.safetensors"):
            state.unlink()
        for result in out.glob("**/fold*/result.json"):
            result.unlink()
    write_json(file, {"format": "stflow_graph.run/1", "config": _identity(config)})
    config.save(out / "config.toml")


def _identity(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for name in ("epochs", "folds", "device"):  # a longer run, more folds, another machine
        del values["train"][name]
    return values


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"{section}.{key} = {before.get(key)!r} (now {after.get(key)!r})")
    return found


def _train_fold(
    dataset: Dataset, fold: Fold, config: Config, folder: Path, report: Report | None
) -> FoldResult:
    hashes = _input_hashes(dataset, fold, config)
    if (folder / "result.json").exists():
        stored = _stored_result(dataset.name, fold.index, folder, config, hashes)
        if stored is not None:
            return stored
    genes = read_gene_list(dataset.gene_list_path(config.data.gene_list))
    slides = [_load(sample, config, genes) for sample in fold.train]
    stream = _stream(config.train.seed, fold.index)
    learn, validate = split_validation(slides, stream)
    provenance = _provenance(dataset, fold, config, hashes, learn, validate)
    config.save(folder / "config.toml")
    write_json(folder / "provenance.json", provenance)
    scaling = Normalisation.fit(
        [slide.x for slide in learn],
        [slide.truth for slide in learn],
        config.data.standardize,
        config.data.center_targets,
    )
    fitted = _fit(config, folder, dataset.name, fold.index, learn, validate, scaling, report)
    provenance |= {
        "best_epoch": fitted.best.epoch,
        "validation_pearson": fitted.best.validation_pearson,
    }
    checkpoint = Checkpoint(config, genes, learn[0].x.shape[1], scaling, fitted.weights, provenance)
    save_checkpoint(folder / "checkpoint", checkpoint)
    pearson = _score_test(checkpoint, [_load(sample, config, genes) for sample in fold.test])
    result = {
        "format": "stflow_graph.fold/1",
        "best": dataclasses.asdict(fitted.best),
        "test_pearson": {k: _without_nan(v) for k, v in pearson.items()},
        "inputs": hashes,
        "epochs": config.train.epochs,
    }
    write_json(folder / "result.json", result)
    return FoldResult(dataset.name, fold.index, folder, fitted.best, pearson, False)


def _fit(
    config: Config,
    folder: Path,
    dataset: str,
    fold: int,
    learn: Sequence[Slide],
    validate: Sequence[Slide],
    scaling: Normalisation,
    report: Report | None,
) -> Fitted:
    device = pick_device(config.train.device)
    stream = _stream(config.train.seed, fold)
    with torch.random.fork_rng():
        torch.manual_seed(stream)
        model = build_denoiser(config, learn[0].x.shape[1], len(scaling.y_mean)).to(device)
    with Tracker(folder / "tensorboard") as tracker:

        def on_epoch(history: list[EpochRecord]) -> None:
            write_text(folder / "history.csv", _csv(history))
            tracker.log(history[-1])
            if report:
                report(Progress(dataset, fold, folder, history[-1]))

        return fit(
            model,
            [scaled_data(slide, scaling) for slide in learn],
            [(slide, slide_data(slide, config, scaling).to(device)) for slide in validate],
            config,
            scaling,
            stream=stream,
            state_file=folder / "state.safetensors",
            report=on_epoch,
        )


def _score_test(checkpoint: Checkpoint, slides: Sequence[Slide]) -> dict[str, np.ndarray]:
    config, scaling = checkpoint.config, checkpoint.normalisation
    device = pick_device(config.train.device)
    model = checkpoint.build(device)
    scores = {}
    for slide in slides:
        data = slide_data(slide, config, scaling).to(device)
        predicted = predict(model, data, slide, config, scaling, seed=config.train.seed)[0]
        scores[slide.name] = pearson_per_gene(predicted, slide.truth)
    return scores


def _load(sample: Sample, config: Config, genes: Sequence[str]) -> Slide:
    data = config.data
    slide = load_sample(sample, data.embed_dataroot, data.encoder, genes, data.target)
    check_spots(slide, config.graph.n_neighbors)
    return slide


def _stream(seed: int, fold: int) -> int:
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])


def _input_hashes(dataset: Dataset, fold: Fold, config: Config) -> dict[str, str]:
    """Return the SHA-256 of every file that decides the fold's result."""
    hashes = {"genes": sha256(dataset.gene_list_path(config.data.gene_list))}
    for sample in (*fold.train, *fold.test):
        data = config.data
        file = find_embedding(data.embed_dataroot, dataset.name, data.encoder, sample.id)
        hashes[f"embeddings/{sample.id}"] = sha256(file)
        hashes[f"expression/{sample.id}"] = sha256(sample.expr_path)
    return hashes


def _provenance(
    dataset: Dataset,
    fold: Fold,
    config: Config,
    hashes: dict[str, str],
    learn: Sequence[Slide],
    validate: Sequence[Slide],
) -> dict[str, Any]:
    widths = {slide.x.shape[1] for slide in (*learn, *validate)}
    if len(widths) > 1:
        raise BadInput(
            config.data.embed_dataroot, "embeddings", plain(f"widths {sorted(widths)}"), "one width"
        )
    return {
        "dataset": dataset.name,
        "fold": fold.index,
        "train_slides": [sample.id for sample in fold.train],
        "test_slides": [sample.id for sample in fold.test],
        "learn_slides": sorted({slide.name for slide in learn}),
        "validation_slides": sorted({slide.name for slide in validate}),
        "source_dataroot": str(Path(config.data.source_dataroot).resolve()),
        "embed_dataroot": str(Path(config.data.embed_dataroot).resolve()),
        "inputs": hashes,
        "seed": config.train.seed,
        "threads": torch.get_num_threads(),
        "device": str(pick_device(config.train.device)),
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
    }


def _stored_result(
    dataset: str, fold: int, folder: Path, config: Config, hashes: dict[str, str]
) -> FoldResult | None:
    stored = read_json(folder / "result.json")
    if stored["inputs"] != hashes:
        changed = [
            k for k in {*hashes, *stored["inputs"]} if hashes.get(k) != stored["inputs"].get(k)
        ]
        raise BadConfig(
            f"{folder}: trained on other inputs ({', '.join(sorted(changed)[:3])} changed). "
            "Fix: another --out, or --overwrite to train anew"
        )
    best = EpochRecord(**stored["best"])
    if stored["epochs"] < config.train.epochs:
        return None  # more epochs are asked for: go on from the state
    load_checkpoint(folder / "checkpoint")
    pearson = {
        name: np.array([np.nan if v is None else v for v in values])
        for name, values in stored["test_pearson"].items()
    }
    return FoldResult(dataset, fold, folder, best, pearson, True)


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _csv(history: Sequence[EpochRecord]) -> str:
    names = [field.name for field in dataclasses.fields(EpochRecord)]
    rows = [",".join(f"{getattr(record, name):.6g}" for name in names) for record in history]
    return "\n".join([",".join(names), *rows]) + "\n"
