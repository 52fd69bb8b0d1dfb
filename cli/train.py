"""``stflow-graph train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group
from typer import Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, progress, show, show_next, table
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.config import Config
    from stflow_graph.stages.train import FoldResult, Progress

Text = str | None
Integer = int | None


def train(
    out: Annotated[Path, Option(help="Output folder of the run.")],
    source_dataroot: opt.SourceDataroot[Text] = None,
    embed_dataroot: opt.EmbedDataroot[Text] = None,
    datasets: opt.Datasets = None,
    encoder: Annotated[Text, Option(help="Encoder of the embeddings.")] = None,
    gene_list: opt.GeneList[Text] = None,
    target: opt.Target[Text] = None,
    allow_patient_overlap: opt.AllowPatientOverlap[bool | None] = None,
    gene_aliases: opt.GeneAliases[Text] = None,
    duplicate_genes: opt.DuplicateGenes[Text] = None,
    missing_genes: opt.MissingGenes[Text] = None,
    allow_patch_size: opt.AllowPatchSize[bool | None] = None,
    allow_missing_spots: opt.AllowMissingSpots[bool | None] = None,
    denoiser: Annotated[Text, Option(help="graph or transformer.")] = None,
    n_layers: Annotated[Integer, Option(help="Number of layers.")] = None,
    n_heads: Annotated[Integer, Option(help="Number of attention heads.")] = None,
    hidden_channels: Annotated[Integer, Option(help="Hidden channels.")] = None,
    n_neighbors: Annotated[Integer, Option(help="Neighbours per spot in the graph.")] = None,
    prior: Annotated[Text, Option(help="Of a flow: zinb, gaussian or zero.")] = None,
    sampler: opt.Sampler[Text] = None,
    n_sample_steps: Annotated[
        Integer, Option(help="Of a flow: network evaluations per sample.")
    ] = None,
    batch_size: Annotated[Integer, Option(help="Regions per training step.")] = None,
    max_spots_per_batch: Annotated[
        Integer, Option(help="Spots per training step; larger slides are split into parts.")
    ] = None,
    epochs: Annotated[Integer, Option(help="Maximum number of epochs.")] = None,
    lr: Annotated[float | None, Option(help="Learning rate.")] = None,
    members: Annotated[Integer, Option(help="Ensemble size.")] = None,
    seed: Annotated[Integer, Option(help="Random seed.")] = None,
    folds: opt.Folds = None,
    warm_start: Annotated[
        Text, Option("--from", help="Run or checkpoint whose weights to start from.")
    ] = None,
    device: opt.Device[Text] = None,
    precision: opt.NetworkPrecision[Text] = None,
    config: Annotated[Path | None, Option(help="TOML file; options override it.")] = None,
    set_: Annotated[list[str] | None, Option("--set", help="section.name=value ...")] = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Train a model on every fold, or on all slides; resumes a run."""
    options = {**locals(), "folds": opt.numbers_or_all(folds) or None}
    from stflow_graph.config import load_config

    check_paths(config)
    resolved = load_config(config, _settings(options, set_ or []))
    data = resolved.data
    check_paths(
        data.gene_aliases,
        folder=out,
        roots=(data.source_dataroot, data.embed_dataroot),
        model=resolved.train.warm_start or None,
    )
    from stflow_graph.parallel.ranks import join
    from stflow_graph.stages.train import train as run

    with progress("epochs") as bar:

        def report(at: Progress) -> None:
            best = f"{at.epoch.validation_pearson:.3f} (best {at.epoch.best_pearson:.3f})"
            note = f"member {at.member}: val PCC {best}"
            total = resolved.train.members * resolved.train.epochs  # fewer if they stop early
            fold = "all slides" if at.fold is None else f"fold {at.fold}"
            bar(f"{at.dataset} {fold}", at.n_epochs, total, note)

        results = run(resolved, out, overwrite=overwrite, report=report, done=_add, ranks=join())
    if not results:  # another rank finished all folds
        return
    show(_result_table(results, resolved, out))
    show(*_hints(results, resolved.train.epochs), style="yellow")
    show(*(f"protocol: {protocol}" for protocol in dict.fromkeys(r.protocol for r in results)))
    show_next(*_sample_command(results[0], resolved, out))


def _settings(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return dotted names of the configuration for the options in use and for ``--set``.

    Args:
        options: the command's parameters; those left out are None or empty.
        assignments: ``section.name=value`` strings, which override the options.
    """
    from stflow_graph.config import OPTIONS, parse_assignments

    settings = {
        name: options[option]
        for option, name in OPTIONS.items()
        if options[option] is not None and options[option] != []
    }
    return {**settings, **parse_assignments(assignments)}


def _add(result: FoldResult) -> None:
    from stflow_graph.stats.metrics import mean_of_defined

    mean = mean_of_defined(result.pearson) if result.test_pearson else None
    add_result(result, checkpoint=result.folder / "checkpoint", mean_pearson=mean)


def _result_table(results: Sequence[FoldResult], config: Config, out: Path) -> Group:
    from stflow_graph.stats.metrics import mean_of_defined

    rows = [
        [
            result.dataset,
            "all" if result.fold is None else str(result.fold),
            ", ".join(str(record.epoch) for record in result.best),
            f"{result.validation_pearson:.3f}",
            ", ".join(result.test_pearson) or "no test slides",
            f"{mean_of_defined(result.pearson):.3f}" if result.test_pearson else "",
            "up to date" if result.up_to_date else "",
        ]
        for result in results
    ]
    headings = ["data set", "fold", "best epochs", "val PCC", "test slides", "test PCC", ""]
    return table(f"{config.denoiser.name} denoiser, {out}", headings, rows, left=(0, 4, 6))


def _hints(results: Sequence[FoldResult], epochs: int) -> list[str]:
    """Return a hint where training has ended before most of the networks were at their best."""
    best = [record.epoch for result in results for record in result.best]
    n_last = sum(epoch >= epochs for epoch in best)
    if 2 * n_last < len(best):
        return []
    members = f"{n_last} of {count(len(best), 'member')}"
    return [f"best epoch of {members} is the last: more epochs may help: --epochs {2 * epochs}"]


def _sample_command(result: FoldResult, config: Config, out: Path) -> list[str | Path]:
    from stflow_graph.data.splits import find_embedding
    from stflow_graph.models.build import custom_code

    if config.train.folds == "all":
        return ["predict", "SLIDE", "--model", out, "--out", out / "predictions"]
    data, slide = config.data, next(iter(result.test_pearson))
    files = find_embedding(data.embed_dataroot, result.dataset, data.encoder, slide).parent
    code = ["--allow-code"] if custom_code(config) else []
    return ["sample", out, files, "--out", out / "predictions", *code]
