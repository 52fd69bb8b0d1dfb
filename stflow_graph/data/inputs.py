"""What a fold's results depend on: its sides and hashes of its files, to detect stale results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stflow_graph.data.splits import Fold, find_embedding
from stflow_graph.errors import BadConfig, one_line
from stflow_graph.io.atomic import sha256


def hash_inputs(
    fold: Fold,
    gene_file: str | Path,
    embed_dataroot: str | Path,
    encoder: str,
    hash_file: Callable[[Path], str] = sha256,
) -> dict[str, str]:
    """Return a fold's slides, and the SHA-256 of its gene list, embeddings and expression.

    The sides are named because every slide is on one of them: a slide that has changed sides
    changes no hash, and a network trained on it must not be tested on it.

    Args:
        fold: training and test slides.
        gene_file: the gene list.
        embed_dataroot: root of the embeddings.
        encoder: of the embeddings.
        hash_file: hashes a file; a caller with many folds may cache it.

    Raises:
        BadInput: a file is missing.
    """
    hashes = {
        "genes": hash_file(Path(gene_file)),
        "train_slides": ", ".join(sample.id for sample in fold.train),
        "test_slides": ", ".join(sample.id for sample in fold.test),
    }
    for sample in (*fold.train, *fold.test):
        file = find_embedding(embed_dataroot, sample.dataset, encoder, sample.id)
        hashes[f"embeddings/{sample.id}"] = hash_file(file)
        hashes[f"expression/{sample.id}"] = hash_file(sample.expr_path)
    return hashes


def check_same_inputs(
    folder: Path, old: object, new: Mapping[str, object], *, done: str, redo: str
) -> None:
    """Refuse a stored result of other inputs.

    Args:
        folder: of the result.
        old: hashes of its inputs, as stored; anything else than a mapping has none.
        new: hashes of the current inputs.
        done: for the message, such as "trained".
        redo: the effect of ``--overwrite``, for the message, such as "train anew".

    Raises:
        BadConfig: they differ; names the first differences.
    """
    old = old if isinstance(old, Mapping) else {}
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if changed:
        names = one_line(", ".join(changed[:3]), 200)
        raise BadConfig(
            f"{folder}: {done} on other inputs ({names} changed). "
            f"Fix: another --out, or --overwrite to {redo}"
        )
