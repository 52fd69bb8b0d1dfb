"""The commands that follow others on the way from slides to a model, each to be run as printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .display import show_next

_LIST = "var_50genes.json"  # train's, where no other is given


def follow_embed(root: Path, embeddings: Path, encoder: str, names: Sequence[str]) -> None:
    """Print what is missing before training, folds or genes, or how to train.

    Args:
        root: HEST-bench root or data set folder.
        embeddings: root of its embeddings.
        encoder: of the embeddings.
        names: of the data sets; none means all.
    """
    from stflow_graph.data.splits import find_datasets

    datasets = find_datasets(root, names)
    options = [_list_options(dataset.path) for dataset in datasets]
    for dataset, found in zip(datasets, options, strict=True):
        has_splits = (dataset.path / "splits").is_dir()
        if found is None or not (has_splits or "all" in found):
            if has_splits:
                show_next("genes", dataset.path)
            else:
                show_next("split", dataset.path, "--leave-one-out")
            return
    chosen = ["--datasets", *names] if names else []
    roots = ("--source-dataroot", root, "--embed-dataroot", embeddings)
    show_next("train", *roots, *chosen, "--encoder", encoder, *(options[0] or ()), "--out RUN")


def follow_genes(root: Path, dataset: str, options: Sequence[str | Path]) -> None:
    """Print how to train on chosen genes, after how to embed where there are no embeddings.

    Args:
        root: HEST-bench root or data set folder.
        dataset: a data set of it.
        options: of ``train``, on the genes.
    """
    found = _embeddings_of(root, dataset)
    if found is None:
        embeddings, encoder = root.parent / "embeddings", []
        show_next("embed --source-dataroot", root, "--embed-dataroot", embeddings)
    else:
        embeddings, encoder = found[0], ["--encoder", found[1]]
    roots = ("--source-dataroot", root, "--embed-dataroot", embeddings)
    show_next("train", *roots, *encoder, *options, "--out RUN")


def _list_options(folder: Path) -> list[str | Path] | None:
    """Return the options of ``train`` for a data set's gene lists; None where it has none."""
    stem = Path(_LIST).stem
    if (folder / _LIST).exists() or (folder / f"{stem}_fold0.json").exists():
        return [] if (folder / "splits").is_dir() else ["--folds", "all"]
    if (folder / f"{stem}_all.json").exists():
        return ["--folds", "all"]
    of_folds, of_all = (sorted(folder.glob(f"*_{fold}.json")) for fold in ("fold0", "all"))
    if len(of_folds) == 1 and (folder / "splits").is_dir():
        return ["--gene-list", Path(of_folds[0].name.replace("_fold0", "_fold{fold}"))]
    if len(of_all) == 1:
        return ["--gene-list", Path(of_all[0].name), "--folds", "all"]
    return None


def _embeddings_of(root: Path, dataset: str) -> tuple[Path, str] | None:
    """Return where the embeddings of a data set are by default, and their encoder."""
    for folder in (root.parent / "embeddings", Path(f"{root}_embeddings")):
        encoders = sorted({file.parents[1].name for file in folder.glob(f"{dataset}/*/fp32/*.h5")})
        if encoders:
            return folder, encoders[0]
    return None
