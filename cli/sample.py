"""``stflow-graph sample``."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, range_note, show, show_next, show_range, state
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.inference.sampling import Sampled


def _tile_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise BadParameter(f"{text[:99]!r}: expected auto or a number of spots >= 1")
    return int(text)


def sample(
    source: Annotated[Path, Argument(help="Run, fold or checkpoint folder.")],
    embeddings: Annotated[list[Path], Argument(help="Embedding files or folders.")],
    out: Annotated[Path, Option(help="Output folder.")],
    n_samples: opt.NSamples = 1,
    seed: opt.Seed = 0,
    sampler: opt.Sampler[str | None] = None,
    n_sample_steps: Annotated[
        int | None, Option(min=1, help="Of a flow: network evaluations per sample.")
    ] = None,
    fold: opt.Fold = None,
    tile_size: Annotated[
        int | None, Option(parser=_tile_size, help="Spots per tile, or auto: as memory permits.")
    ] = None,
    observed: Annotated[
        Path | None,
        Option(
            help="Counts measured at some spots, which inform the others: .h5ad, or folder of "
            "<slide>.h5ad."
        ),
    ] = None,
    denoise_observed: Annotated[
        bool, Option("--denoise-observed", help="Give the model's estimate of measured values.")
    ] = False,
    gene_aliases: opt.GeneAliases[Path | None] = None,
    image: Annotated[Path | None, Option(help="H&E image, or folder of <slide>.jpg.")] = None,
    genes: opt.ChosenGenes = None,
    allow_patch_size: opt.AllowPatchSize[bool] = False,
    device: opt.Device[str] = "auto",
    precision: opt.NetworkPrecision[str] = "float32",
    part: opt.PartOfSlides = None,
    overwrite: opt.Overwrite = False,
    allow_code: opt.AllowCode = False,
) -> None:
    """Predict the expression of slides from their embeddings."""
    check_paths(observed, gene_aliases, image, folder=out, model=source, slides=embeddings)
    from stflow_graph.inference.settings import SampleSettings
    from stflow_graph.stages.sample import sample as run

    settings = SampleSettings(
        n_samples=n_samples,
        seed=seed,
        sampler=sampler,
        n_sample_steps=n_sample_steps,
        fold=fold,
        device=device,
        precision=precision,
        tile_size=tile_size,
        image=image,
        observed=observed,
        denoise_observed=denoise_observed,
        gene_aliases=gene_aliases,
        allow_patch_size=allow_patch_size,
        genes=opt.gene_names(genes),
    )
    done = run(
        source,
        embeddings,
        out,
        settings,
        overwrite=overwrite,
        allow_code=allow_code,
        report=_show,
        share=opt.share_of(part),
    )
    if done:
        show_next(*_next_step(done, out))
    elif part:
        show(f"part {part} has no slides")


def _next_step(done: list[Sampled], out: Path) -> list[str | Path]:
    """Return the command to go on with: ``eval`` where every slide's expression is at hand."""
    from stflow_graph.errors import BadInput
    from stflow_graph.evaluation.files import truth_file
    from stflow_graph.io.predictions import read_provenance

    provenance = read_provenance(done[0].path)
    # the checkpoint names these roots: they are looked for, not opened, and shown safe to copy
    roots = {name: provenance.get(name) for name in ("source_dataroot", "embed_dataroot")}
    names = [root for root in roots.values() if isinstance(root, str) and root.isprintable()]
    folders = set()
    if len(names) == len(roots):
        dataset = str(provenance.get("dataset") or "")
        with contextlib.suppress(BadInput, OSError):
            folders = {truth_file(Path(names[0]), dataset, slide.slide).parent for slide in done}
    if len(folders) != 1:
        return ["export", done[0].path, "--to", done[0].path.with_suffix(".csv")]
    evaluation = out.parent / ("eval" if out.name == "predictions" else f"{out.name}_eval")
    predictions = f"{shlex.quote(str(out))}/*.h5ad"
    return [
        *("eval", predictions, "--truth", folders.pop(), "--out", evaluation, "--baselines"),
        *("--source-dataroot", Path(names[0]), "--embed-dataroot", Path(names[1])),
    ]


def _show(done: Sampled) -> None:
    add_result(done)
    fold = "" if done.fold is None else f", fold {done.fold}"
    fold += " (held out)" if done.held_out else ""
    note = fold + range_note(done.in_range)
    outcome = state(done.up_to_date, done.replaced)
    show(f"{done.slide}: {count(done.n_spots, 'spot')}{note}: {done.path} {outcome}")
    show_range(done.slide, done.in_range)
