"""The probe stage: patch encoders compared by regression on their embeddings, as in HEST-bench."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from stflow_graph.data.splits import (
    Dataset,
    embedding_path,
    existing_embedding,
    find_datasets,
    find_embedding,
)
from stflow_graph.encoders import Encoder, create_encoder
from stflow_graph.encoders.catalogue import canonical_name
from stflow_graph.errors import BadConfig, BadInput, attempt_each, unquoted
from stflow_graph.evaluation.encoder_probe import Cell, EncoderProbe, ProbeSettings
from stflow_graph.evaluation.hest_results import results_datasets, results_encoders
from stflow_graph.io.atomic import check_name, sha256, write_json, write_text
from stflow_graph.io.cells import safe_cell
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.preparation.cut_patches import Progress
from stflow_graph.preparation.embedding import embed_files
from stflow_graph.preparation.engine import EmbedSettings


def probe(
    source_dataroot: str | Path,
    embed_dataroot: str | Path,
    out: str | Path,
    encoders: Sequence[str],
    settings: ProbeSettings | None = None,
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

    Slides without embeddings are embedded first; existing embeddings, in any layout, are used and
    need neither patches nor the encoder's weights. Writes ``out/<data set>/<encoder>/`` with
    ``split<i>/results.json`` and ``results_kfold.json``, ``out/<data set>/enc_results.json``,
    ``out/dataset_results.json`` and ``.csv``, all in HEST's form. Existing folds are skipped.

    Args:
        source_dataroot: a HEST-bench root or one data set folder.
        embed_dataroot: root of the embeddings.
        out: folder of the results.
        encoders: names or aliases; results have the names.
        settings: of the regression; None takes HEST's.
        datasets: names of data sets; none means all.
        allow_patient_overlap: score also folds with a patient on both sides.
        overwrite: score all folds again; embeddings are kept.
        embed_settings: of missing embeddings; None takes the defaults.
        make_encoder: creates an encoder from its name, called only if embeddings are missing.
        progress: of embedding, called with (slide, spots done, spots in all).
        report: called with each finished cell.

    Returns:
        A cell per data set and encoder, in the order of the arguments.

    Raises:
        BadInput: data that cannot be used, or the only cell's cannot.
        BadConfig: ``out`` holds results of other settings or inputs.
        SomeFailed: some cells failed and are named; the others are written.
    """
    out, embed_dataroot = check_output_folder(out), check_output_folder(embed_dataroot)
    settings = settings or ProbeSettings()
    names = [canonical_name(name) for name in encoders]
    if not names or len(set(names)) < len(names):
        raise BadConfig(f"encoders {list(encoders)}: expected one or more, each once")
    for name in names:
        check_name(name, embed_dataroot, "encoder")
    data = find_datasets(source_dataroot, datasets)
    for dataset in data:
        dataset.training_folds(allow_patient_overlap=allow_patient_overlap)
        _check_distinct_files(dataset, embed_dataroot, names)
    # one encoder at a time in memory
    encoder_of, hash_file = functools.lru_cache(1)(make_encoder), functools.cache(sha256)
    cells: dict[tuple[str, str], Cell] = {}

    def run(dataset: Dataset, name: str) -> None:
        jobs = _missing(dataset, embed_dataroot, name)
        if jobs:
            how = embed_settings or EmbedSettings()
            embed_files(jobs, encoder_of(name), how, progress=progress)
        task = EncoderProbe(dataset, name, embed_dataroot, settings, hash_file)
        cell = task.run(out / dataset.name / name, overwrite=overwrite)
        cells[dataset.name, name] = cell = dataclasses.replace(cell, n_embedded=len(jobs))
        if report:
            report(cell)

    work = [(f"{d.name}, {n}", functools.partial(run, d, n)) for n in names for d in data]
    try:
        attempt_each(work)
    finally:
        ordered = [cells[d.name, n] for d in data for n in names if (d.name, n) in cells]
        _write_tables(out, ordered)
    return ordered


def _check_distinct_files(dataset: Dataset, root: Path, encoders: Sequence[str]) -> None:
    """Refuse one embedding file for two encoders: in the flat layout paths name no encoder."""
    owner: dict[Path, str] = {}
    for encoder in encoders:
        for sample in dataset.samples():
            file = existing_embedding(root, dataset.name, encoder, sample.id)
            if file is not None and owner.setdefault(file, encoder) != encoder:
                found = unquoted(f"the same file for {owner[file]} and {encoder}")
                fix = f"put the files in a folder named as their encoder, such as {encoder}/"
                raise BadInput(file, "encoder", found, "embeddings of one encoder", fix)


def _missing(dataset: Dataset, root: Path, encoder: str) -> list[tuple[Path, Path]]:
    """Return the patch file and the new embedding file of each slide without embeddings.

    Raises:
        BadInput: a slide has neither embeddings nor patches.
    """
    missing = [
        sample
        for sample in dataset.samples()
        if existing_embedding(root, dataset.name, encoder, sample.id) is None
    ]
    for sample in missing:
        if not sample.patches_path.is_file():
            find_embedding(root, dataset.name, encoder, sample.id)
    return [(s.patches_path, embedding_path(root, dataset.name, encoder, s.id)) for s in missing]


def _write_tables(out: Path, cells: Sequence[Cell]) -> None:
    """Write each data set's table of encoders, and the table of data sets."""
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    rows: dict[str, dict[str, float]] = {}
    for cell in cells:
        scores.setdefault(cell.dataset, {})[cell.encoder] = (cell.mean, cell.std)
        row = rows.setdefault(safe_cell(cell.dataset), {})
        row |= {f"{cell.encoder}_mean": cell.mean, f"{cell.encoder}_std": cell.std}
    for dataset, of_encoders in scores.items():
        write_json(out / dataset / "enc_results.json", results_encoders(of_encoders))
    if scores:
        write_json(out / "dataset_results.json", results_datasets(scores))
        table = pd.DataFrame.from_dict(rows, orient="index")
        write_text(
            out / "dataset_results.csv",
            table.to_csv(index_label="dataset", lineterminator="\n"),
        )
