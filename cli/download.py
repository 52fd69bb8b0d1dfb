"""``stflow-graph download``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from .progress import byte_progress

if TYPE_CHECKING:
    from stflow_graph.stages.download import Downloaded, Selection


def download(
    datasets: Annotated[
        list[str] | None, typer.Option(help="Data sets of HEST-bench (with --out), or all.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder whose weights to fetch (with --weights-root).")
    ] = None,
    repo: Annotated[
        str | None, typer.Option(help="owner/name of a repository (with --out).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder: a HEST-bench root, or any.")] = None,
    weights_root: Annotated[Path | None, typer.Option(help="Folder of encoders' weights.")] = None,
    repo_type: Annotated[str, typer.Option(help="Of --repo: dataset or model.")] = "dataset",
    include: Annotated[
        list[str] | None, typer.Option(help="Patterns of files of --repo; default all.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token, if neither HF_TOKEN nor a login is.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files of another content.")] = False,
) -> None:
    """Fetch data sets or weights from the Hugging Face hub; run it again to go on."""
    if sum(bool(given) for given in (datasets, encoder, repo)) != 1:
        raise typer.BadParameter("give one of --datasets, --encoder and --repo")
    folder = weights_root if encoder else out
    if folder is None:
        raise typer.BadParameter("--weights-root is needed" if encoder else "--out is needed")
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
    with byte_progress() as progress:
        done = run(selection, folder, hub=hub, overwrite=overwrite, progress=progress)
    for line in _summary(done, selection, folder):
        Console().print(Text(line), soft_wrap=True)


def _summary(done: Downloaded, selection: Selection, folder: Path) -> list[str]:
    kept = f", {len(done.kept)} there already" if done.kept else ""
    files = f"{len(done.fetched)} files fetched{kept}, {done.n_bytes / 1e9:,.2f} GB in all"
    return [f"{selection.repo.id} at {done.commit[:12]}: {files}: {folder}"]
