"""``stflow-graph download``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, progress, show


def download(
    datasets: Annotated[
        list[str] | None, Option(help="Data sets of HEST-bench or all (with --out).")
    ] = None,
    encoder: Annotated[
        str | None, Option(help="Encoder for its weights (with --weights-root).")
    ] = None,
    repo: Annotated[str | None, Option(help="owner/name of a repository (with --out).")] = None,
    out: Annotated[Path | None, Option(help="Output folder, such as a HEST-bench root.")] = None,
    weights_root: opt.WeightsRoot = None,
    repo_type: Annotated[str, Option(help="Type of --repo: dataset or model.")] = "dataset",
    include: Annotated[list[str] | None, Option(help="File patterns. (default: all)")] = None,
    revision: Annotated[str, Option(help="Branch, tag or commit.")] = "main",
    token_file: Annotated[Path | None, Option(help="File with a token of the hub.")] = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Download data sets or weights from the Hugging Face hub.

    An interrupted download resumes.
    """
    if sum(bool(source) for source in (datasets, encoder, repo)) != 1:
        raise BadParameter("give one of --datasets, --encoder and --repo")
    folder = weights_root if encoder else out
    if folder is None:
        raise BadParameter("--weights-root is needed" if encoder else "--out is needed")
    from stflow_graph.io.hub import Hub, read_token
    from stflow_graph.stages.download import Selection
    from stflow_graph.stages.download import download as run

    if datasets:
        selection = Selection.bench([] if datasets == ["all"] else datasets, revision)
    elif encoder:
        selection = Selection.weights(encoder, revision)
    else:
        selection = Selection.repository(str(repo), repo_type, include or [], revision)
    hub = Hub(token=None if token_file is None else read_token(token_file))
    with progress("bytes") as report:
        done = run(selection, folder, hub=hub, overwrite=overwrite, progress=report)
    add_result(done, repository=selection.repo.id, out=folder)
    kept = f", {len(done.kept)} up to date" if done.kept else ""
    fetched = count(len(done.fetched), "file")
    show(
        f"{selection.repo.id} at {done.commit[:12]}: {fetched} downloaded{kept}, "
        f"{done.n_bytes / 1e9:,.2f} GB in total: {folder}"
    )
