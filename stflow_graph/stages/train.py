"""The train stage: every fold of a data set, resumable, choosing on training slides alone."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric

from stflow_graph.config import Config
from stflow_graph.config.stored import check_same_run
from stflow_graph.data.genes import check_measured, check_not_chosen_on, read_gene_list
from stflow_graph.data.inputs import check_same_inputs, hash_inputs
from stflow_graph.data.load import (
    check_one_patch_size,
    check_one_width,
    load_sample,
    same_patch_size,
)
from stflow_graph.data.protocol import protocol_name
from stflow_graph.data.slide import Slide
from stflow_graph.data.splits import Dataset, Fold, Sample, find_datasets, find_embedding
from stflow_graph.errors import BadInput, as_bad_input, unquoted
from stflow_graph.evaluation.hest_results import results_kfold
from stflow_graph.inference.inputs import check_enough_spots
from stflow_graph.inference.predictor import Predictor
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import write_json, write_text
from stflow_graph.io.coords import array_pitch
from stflow_graph.io.expression import gene_identities
from stflow_graph.io.gene_aliases import gene_matching
from stflow_graph.io.gene_names import GeneMatching
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.process import available_memory
from stflow_graph.io.versions import Versions
from stflow_graph.models.build import pick_device
from stflow_graph.models.checkpoint import (
    Checkpoint,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from stflow_graph.models.precision import check_precision
from stflow_graph.models.warm_start import WarmStart
from stflow_graph.parallel.group import Group, make_groups
from stflow_graph.parallel.parts import size_of
from stflow_graph.parallel.ranks import Ranks, ranks_of_this_machine
from stflow_graph.stats.metrics import pearson_per_gene, pooled_pearson
from stflow_graph.stats.panels import measured_genes
from stflow_graph.training.fold import FoldTraining
from stflow_graph.training.fold_result import (
    FoldResult,
    history_csv,
    read_provenance,
    read_result,
    write_provenance,
)
from stflow_graph.training.loop import EpochRecord
from stflow_graph.training.run_folder import (
    check_is_run,
    claim,
    finished_folds,
    lock_fold,
    lock_run,
)
from stflow_graph.training.tracking import Trackers
from stflow_graph.version import __version__

_MIN_EMBEDDED = 0.5  # of a slide's measured spots
_MEMORY_SHARE = 0.4  # of what is available, for the training slides' embeddings


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run, reported after every epoch: the member and its last epoch.

    ``n_epochs`` counts those of all members of the fold so far.
    """

    dataset: str
    fold: int | None
    folder: Path
    member: int
    epoch: EpochRecord
    n_epochs: int


Report = Callable[[Progress], None]


def train(
    config: Config,
    out: str | Path,
    *,
    overwrite: bool = False,
    report: Report | None = None,
    done: Callable[[FoldResult], None] | None = None,
    ranks: Ranks | None = None,
) -> list[FoldResult]:
    """Train a denoiser on every fold of every data set and score it on the fold's test slides.

    Writes ``out/fold<i>/`` (with several data sets ``out/<data set>/fold<i>/``): ``checkpoint/``,
    ``history.csv``, ``config.toml``, ``provenance.json``, ``result.json``, TensorBoard logs; and
    ``results_kfold.json`` in HEST's form, with all folds that are finished. With ``train.folds =
    "all"`` it trains on every slide, tests none and writes ``out/all/``; members hold slides out in
    turn all the same. An interrupted run is
    resumed; complete folds are skipped. Test slides are read with the others, so that a bad one is
    refused before hours of training, but training is not given them.

    Args:
        config: the resolved configuration.
        out: the run's folder.
        overwrite: train anew where ``out`` holds a run of another configuration.
        report: called after every epoch.
        done: called after every fold.
        ranks: the processes that share the members of all folds, and where there are more
            processes than members the steps of ``train.batch_size`` regions; the first one calls
            ``report`` for its own and ``done`` for all, and returns all results, the others theirs.

    Raises:
        BadInput: data that cannot be used, or ``out`` holds files that are of no run.
        BadConfig: ``out`` holds another configuration's run, a fold or device does not
            exist, or the device lacks the precision.
        Diverged: a loss that is not finite.
        StorageFailed: another process trains one of the folds; the disk is full or broken.
        RankFailed: another rank failed or is lost.
    """
    out = check_output_folder(out)
    check_precision(config.train.precision, pick_device(config.train.device))
    datasets = find_datasets(config.data.source_dataroot, config.data.datasets)
    overlap = config.data.allow_patient_overlap
    work = [
        (dataset, fold)
        for dataset in datasets
        for fold in dataset.training_folds(config.train.folds, allow_patient_overlap=overlap)
    ]
    folders = [(out if len(datasets) == 1 else out / d.name) / fold.name for d, fold in work]
    if ranks is not None:
        with ranks.telling_failures():
            return _train_by_ranks(work, folders, config, out, overwrite, report, done, ranks)
    _check_run(out, config, overwrite)
    results: list[FoldResult] = []
    for (dataset, fold), folder in zip(work, folders, strict=True):
        inputs = _read_inputs(dataset, fold, config)
        if not results:  # nothing is written before the first fold's data have proved good
            claim(out, config, overwrite)
        with lock_fold(folder):
            result = _train_fold(inputs, config, folder, report)
        results.append(result)
        if done is not None:
            done(result)
        _write_table(result, config)
    return results


def _check_run(out: Path, config: Config, overwrite: bool) -> None:
    check_is_run(out)
    if not overwrite:
        check_same_run(out, config)


def _write_table(result: FoldResult, config: Config) -> None:
    """Write the table of all folds that are finished, if the result is of one."""
    if result.fold is None:
        return
    parent = result.folder.parent
    with lock_run(parent):  # jobs of an array, each with folds of its own
        others = finished_folds(parent, result.dataset, config.train.epochs, result.protocol)
        tables = [dict(zip(r.genes, r.pearson.tolist(), strict=True)) for r in others]
        table = results_kfold(tables) | {"protocol": result.protocol}
        write_json(parent / "results_kfold.json", table)


def _train_by_ranks(
    work: Sequence[tuple[Dataset, Fold]],
    folders: Sequence[Path],
    config: Config,
    out: Path,
    overwrite: bool,
    report: Report | None,
    done: Callable[[FoldResult], None] | None,
    ranks: Ranks,
) -> list[FoldResult]:
    """Train the members of all folds, each by a rank, or by a group of them if there are so many.

    A member's state is in its fold's folder: whoever has trained the last member of a fold reads
    those of the others, and finishes it.
    """
    results: dict[int, FoldResult] = {}
    shared, count = ranks.results(len(work)), ranks.counter()

    def take(arrived: Iterable[tuple[int, FoldResult]]) -> None:
        for k, result in arrived:
            results[k] = result
            if done is not None:
                done(result)

    first: _Inputs | None = None
    with contextlib.ExitStack() as locks:
        n_members = config.train.members
        group_size = min(ranks.size // (len(work) * n_members), config.train.batch_size)
        locks.enter_context(ranks.watching(others=group_size > 1))
        if ranks.rank == 0:
            _check_run(out, config, overwrite)
            first = _read_inputs(*work[0], config)
            claim(out, config, overwrite)
            for folder in folders:
                locks.enter_context(lock_fold(folder))
            ranks.tell("claimed")
        else:
            ranks.hear()
        group, tasks = _tasks(len(work) * n_members, group_size, config, ranks)
        leads = group is None or group.rank == 0
        current: tuple[int, _FoldWork] | None = None
        for k, i in (divmod(task, n_members) for task in tasks):
            if current is None or current[0] != k:
                current = None  # the slides of one fold at a time are in memory
                inputs = first if k == 0 and first else _read_inputs(*work[k], config)
                first = None
                current = k, _FoldWork(inputs, config, folders[k], report if leads else None)
            fold_work = current[1]
            fold_work.train(i, group)
            if leads and count(str(k)) == n_members:
                result = fold_work.finish()
                _write_table(result, config)
                shared.put(k, (k, result))
                if ranks.rank:
                    results[k] = result
            if ranks.rank == 0:
                take(shared.ready())
        if ranks.rank == 0:
            take(shared.rest())
        ranks.leave()
    return [results[k] for k in sorted(results)]


def _tasks(n: int, size: int, config: Config, ranks: Ranks) -> tuple[Group | None, Iterator[int]]:
    """Return the group that this rank trains in, if any, and which of n members it trains."""
    if size < 2:
        return None, ranks.claims(n)
    group = make_groups(ranks, size, pick_device(config.train.device))
    number = ranks.rank // size
    return group, iter([number] if group is not None and number < n else [])


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """A fold's training and test slides and what identifies its files."""

    dataset: str
    fold: Fold
    protocol: str
    gene_list: str
    genes: list[str]
    slides: list[Slide]
    tests: list[Slide]
    hashes: dict[str, str]
    warm_start: WarmStart | None


def _read_inputs(dataset: Dataset, fold: Fold, config: Config) -> _Inputs:
    gene_file = dataset.gene_list_path(config.data.gene_list, fold)
    data, versions = config.data, Versions(gene_file)
    genes = read_gene_list(gene_file)
    check_not_chosen_on(gene_file, [sample.id for sample in fold.test])
    hashes = hash_inputs(fold, gene_file, data.embed_dataroot, data.encoder, versions.sha256)
    matching = gene_matching(data.gene_aliases, data.duplicate_genes, data.missing_genes)
    if data.gene_aliases:
        hashes["gene_aliases"] = versions.sha256(data.gene_aliases)
    in_memory = _fit_into_memory(fold.train, config)
    slides, tests = (
        [_load(sample, config, genes, matching, in_memory) for sample in side]
        for side in (fold.train, fold.test)
    )
    check_one_width([*slides, *tests], config.data.embed_dataroot)
    if not data.allow_patch_size:
        check_one_patch_size([*slides, *tests])
    check_measured(genes, slides, gene_file)
    warm_start = _warm_start(config, genes, hashes, fold, versions)
    versions.check()
    folds = [fold] if fold.index is None else None
    protocol = protocol_name(dataset, data.target, data.gene_list, data.missing_genes, folds)
    names = dataset.name, fold, protocol, gene_file.name
    return _Inputs(*names, genes, slides, tests, hashes, warm_start)


def _warm_start(
    config: Config, genes: list[str], hashes: dict[str, str], fold: Fold, versions: Versions
) -> WarmStart | None:
    """Read the model to start from, if there is one, and add its hash to those of the inputs.

    Raises:
        BadInput: it was trained on a test slide of the fold.
    """
    if not config.train.warm_start:
        return None
    folder = find_checkpoints(config.train.warm_start)[0]
    source = load_checkpoint(folder)
    seen = source.provenance.get("inputs")
    learnt = set(source.provenance.get("train_slides") or [])
    known = {seen.get(f"expression/{name}") for name in learnt} if isinstance(seen, dict) else set()
    for sample in fold.test:
        if hashes[f"expression/{sample.id}"] in known:
            raise BadInput(
                folder,
                "training slides",
                unquoted(f"counts of test slide {sample.id} among them"),
                "a model that has not seen the test slides",
                "start from another model, or from nothing",
            )
    hashes["warm_start"] = versions.sha256(folder / "config.json")
    return WarmStart(source, genes)


def _train_fold(inputs: _Inputs, config: Config, folder: Path, report: Report | None) -> FoldResult:
    return _FoldWork(inputs, config, folder, report).finish()


class _FoldWork:
    """What is to be done for a fold: nothing where it is complete.

    Args:
        inputs: its slides.
        config: the run's configuration.
        folder: of the fold.
        report: called after every epoch.
    """

    def __init__(
        self, inputs: _Inputs, config: Config, folder: Path, report: Report | None
    ) -> None:
        self._inputs, self._config, self._folder, self._report = inputs, config, folder, report
        self._stored = _stored_result(inputs, config, folder)
        if self._stored is not None:
            return
        self._provenance = _provenance(inputs, config)
        config.save(folder / "config.toml")
        write_provenance(folder / "provenance.json", self._provenance)
        self._trackers = Trackers(folder / "tensorboard")
        self._training = FoldTraining(
            inputs.slides,
            config,
            folder,
            fold=inputs.fold.index or 0,
            warm_start=inputs.warm_start,
            report=self._on_epoch,
        )

    def train(self, i: int, group: Group | None) -> None:
        """Train a member, alone or in a group, if the fold has it and is not complete."""
        if self._stored is None and i < self._training.n_members:
            with self._trackers:
                self._training.train(i, group)

    def finish(self) -> FoldResult:
        """Train the members that are not trained yet; write the checkpoint and the result."""
        if self._stored is not None:
            return self._stored
        inputs, config, folder = self._inputs, self._config, self._folder
        with self._trackers:
            fitted = self._training.finish()
        write_text(folder / "history.csv", history_csv(fitted.histories))  # also of other ranks
        checkpoint = fitted.checkpoint(inputs.genes, inputs.slides[0].width, self._provenance)
        write_provenance(folder / "provenance.json", checkpoint.provenance)
        fitted.config.save(folder / "config.toml")  # with what training has set
        save_checkpoint(folder / "checkpoint", checkpoint)
        pearson, of_slides = _score_test(checkpoint, inputs.tests)
        result = FoldResult(
            inputs.dataset,
            inputs.fold.index,
            folder,
            fitted.best,
            fitted.validation_pearson,
            inputs.genes,
            pearson,
            of_slides,
            False,
            inputs.protocol,
        )
        result.save(inputs=inputs.hashes, epochs=config.train.epochs)
        return result

    def _on_epoch(self, histories: list[list[EpochRecord]], member: int) -> None:
        last = histories[member][-1]
        write_text(self._folder / "history.csv", history_csv(histories))
        self._trackers.log(member, last)
        if self._report:
            n_epochs = sum(history[-1].epoch for history in histories if history)
            fold = self._inputs.fold.index
            dataset = self._inputs.dataset
            self._report(Progress(dataset, fold, self._folder, member, last, n_epochs))


def _score_test(
    checkpoint: Checkpoint, slides: Sequence[Slide]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the PCC of each gene over the spots of all slides, and over those of each slide.

    A slide counts for the genes that it measures.
    """
    if not slides:
        return np.full(len(checkpoint.genes), np.nan), {}
    train = checkpoint.config.train
    predictor = Predictor(checkpoint, train.device)
    settings = SampleSettings(seed=train.seed)
    predicted = [
        np.concatenate([block.mean for block in predictor.blocks(slide, settings)])
        for slide in slides
    ]
    truth = [slide.truth for slide in slides]
    of_slides = {
        slide.name: pearson_per_gene(mean, slide.truth)
        for slide, mean in zip(slides, predicted, strict=True)
    }
    return pooled_pearson(predicted, truth), of_slides


def _fit_into_memory(samples: Sequence[Sample], config: Config) -> bool:
    """Return whether slides' embeddings can be kept as networks read them; by their files' sizes.

    With them are kept scaled ones and one average for each hop of the context. Ranks of a machine
    share its memory.
    """
    data, available = config.data, available_memory()
    if available is None:
        return True
    sizes = [
        size_of(find_embedding(data.embed_dataroot, sample.dataset, data.encoder, sample.id))
        for sample in samples
    ]
    copies = 2 + len(getattr(config.denoiser, "context_hops", ()))
    return copies * sum(sizes) * ranks_of_this_machine() <= _MEMORY_SHARE * available


def _load(
    sample: Sample,
    config: Config,
    genes: Sequence[str],
    matching: GeneMatching,
    in_memory: bool,
) -> Slide:
    data = config.data
    slide = load_sample(
        sample,
        data.embed_dataroot,
        data.encoder,
        genes,
        data.target,
        matching,
        0.0 if data.allow_missing_spots else _MIN_EMBEDDED,
        in_memory,
    )
    check_enough_spots(len(slide), config.graph.n_neighbors, slide.file or slide.name)
    return slide


def _provenance(inputs: _Inputs, config: Config) -> dict[str, Any]:
    fold = inputs.fold
    return {
        "dataset": inputs.dataset,
        "fold": fold.index,
        "protocol": inputs.protocol,
        "gene_list": inputs.gene_list,
        "train_slides": [sample.id for sample in fold.train],
        "test_slides": [sample.id for sample in fold.test],
        **missing_genes(inputs.slides, config),
        **physical_sizes(inputs.slides),
        **_started_from(inputs.warm_start),
        **_gene_identities(fold.train, inputs.genes),
        "source_dataroot": str(Path(config.data.source_dataroot).resolve()),
        "embed_dataroot": str(Path(config.data.embed_dataroot).resolve()),
        "inputs": inputs.hashes,
        **surroundings(config),
    }


def missing_genes(slides: Sequence[Slide], config: Config) -> dict[str, Any]:
    """Return the number of genes that each training slide lacks; nothing unless these are masked.

    Slides that lack none are left out.
    """
    if config.data.missing_genes != "mask":
        return {}
    absent = {slide.name: int((~measured_genes(slide.truth)).sum()) for slide in slides}
    return {"missing_genes": {name: number for name, number in absent.items() if number}}


def _started_from(warm_start: WarmStart | None) -> dict[str, Any]:
    if warm_start is None:
        return {}
    theirs = warm_start.source.provenance
    slides = {"train_slides": theirs.get("train_slides"), "dataset": theirs.get("dataset")}
    return {"warm_start": slides}


def _gene_identities(samples: Sequence[Sample], genes: Sequence[str]) -> dict[str, Any]:
    """Return Ensembl IDs and symbols of the genes, by the first slides that know them."""
    ids, symbols = dict.fromkeys(genes, ""), dict.fromkeys(genes, "")
    for sample in samples:
        if all(ids.values()) and all(symbols.values()):
            break
        for gene, (ensembl, symbol) in gene_identities(sample.expr_path, genes).items():
            ids[gene], symbols[gene] = ids[gene] or ensembl, symbols[gene] or symbol
    if not any(ids.values()):
        return {}
    return {"gene_ids": [*ids.values()], "gene_symbols": [*symbols.values()]}


def physical_sizes(slides: Sequence[Slide]) -> dict[str, Any]:
    """Return the medians of the patches' edge and of the spots' pitch, µm, where known.

    Where slides have patches of different sizes, ``patch_um_all`` lists them.
    """
    patches = [slide.patch_um for slide in slides if slide.patch_um is not None]
    pitches = [
        array_pitch(slide.coords) * slide.um_per_px
        for slide in slides
        if slide.um_per_px is not None
    ]
    sizes = {"patch_um": patches, "pitch_um": pitches}
    medians = {name: float(np.median(values)) for name, values in sizes.items() if values}
    edges = sorted({float(f"{edge:.4g}") for edge in patches})  # but for rounding in the files
    if any(not same_patch_size(edge, edges[0]) for edge in edges):
        return {**medians, "patch_um_all": edges}
    return medians


def surroundings(config: Config) -> dict[str, Any]:
    """Return what determines a training run beside the data: seed, device, threads, versions."""
    return {
        "seed": config.train.seed,
        "threads": torch.get_num_threads(),
        "device": str(pick_device(config.train.device)),
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
    }


def _stored_result(inputs: _Inputs, config: Config, folder: Path) -> FoldResult | None:
    """Return the result of a complete fold, None if training is not finished.

    Raises:
        BadConfig: what is stored, complete or begun, is of other inputs.
    """
    begun = folder / "provenance.json"
    if begun.exists():
        stored = read_provenance(begun).get("inputs")
        check_same_inputs(folder, stored, inputs.hashes, done="trained", redo="train anew")
    if not (folder / "result.json").exists():
        return None
    stored = read_result(folder / "result.json")
    check_same_inputs(
        folder, stored.get("inputs"), inputs.hashes, done="trained", redo="train anew"
    )
    with as_bad_input(folder / "result.json", "content", "the result of a fold"):
        if stored["epochs"] < config.train.epochs:
            return None  # more epochs are wanted: resume from the state
        result = FoldResult.from_json(inputs.dataset, inputs.fold.index, folder, stored)
    # complete and undamaged; its code is that of this run's configuration and is not run here
    load_checkpoint(folder / "checkpoint", allow_code=True)
    return result
