"""``stflow-graph predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from stflow_graph.errors import count

from . import options as opt
from .display import add_result, progress, range_note, show, show_next, show_range, state
from .paths import check_paths

if TYPE_CHECKING:
    from stflow_graph.platforms.source import SourceOptions
    from stflow_graph.preparation.slide_places import SlideImage
    from stflow_graph.stages.predict import PredictedSlide

SLIDES = (
    "H&E images (SVS, NDPI, TIFF, JPEG, ...), folders of them, or folders of Space Ranger, "
    "Xenium, HEST-1k, ... whose spots are predicted."
)


def predict(
    slides: Annotated[list[Path], Argument(help=SLIDES)],
    model: Annotated[Path, Option(help="Run, fold or checkpoint folder.")],
    out: Annotated[Path, Option(help="Output folder.")],
    um_per_px: opt.UmPerPx = None,
    spots: opt.Spots = None,
    image: Annotated[Path | None, Option(help="Full-resolution H&E image of the folder.")] = None,
    name: Annotated[str | None, Option("--id", help="Name of the only slide.")] = None,
    pitch_um: Annotated[
        float | None, Option(min=0.001, max=1e5, help="Grid spacing, µm. (default: as in training)")
    ] = None,
    layout: opt.Layout = "hexagonal",
    min_tissue: opt.MinTissue = 0.25,
    genes: opt.ChosenGenes = None,
    n_samples: opt.NSamples = 1,
    seed: opt.Seed = 0,
    fold: opt.Fold = None,
    encoder: Annotated[
        str | None, Option(help="Encoder of the model, if it is your own: module:factory.")
    ] = None,
    weights: Annotated[Path | None, Option(help="Weights file of the encoder.")] = None,
    weights_root: opt.WeightsRoot = None,
    batch_size: opt.PatchBatch = 64,
    device: opt.Device[str] = "auto",
    precision: opt.Precision = "auto",
    engine: opt.Engine = "auto",
    workers: opt.Workers = 0,
    keep_patches: Annotated[
        bool, Option("--keep-patches", help="Write OUT/patches/<slide>.h5 too.")
    ] = False,
    keep_embeddings: Annotated[
        bool, Option("--keep-embeddings", help="Keep OUT/embeddings/<slide>.h5.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be done, how long it takes, its size.")
    ] = False,
    part: opt.PartOfSlides = None,
    overwrite: opt.Overwrite = False,
    allow_code: opt.AllowCode = False,
) -> None:
    """Predict expression from H&E images alone."""
    check_paths(spots, image, weights, weights_root, folder=out, model=model, slides=slides)
    from stflow_graph.encoders import create_encoder
    from stflow_graph.inference.settings import SampleSettings
    from stflow_graph.models.build import pick_device
    from stflow_graph.models.checkpoint import find_checkpoints
    from stflow_graph.platforms.source import SourceOptions
    from stflow_graph.preparation.engine import EmbedSettings
    from stflow_graph.stages.predict import (
        PredictSettings,
        encoder_of,
        estimate,
        models_of,
        report_file,
    )
    from stflow_graph.stages.predict import predict as run

    chosen = opt.share_of(part)
    found = _slides(slides, spots, SourceOptions(name, image, um_per_px))
    sample = SampleSettings(n_samples, seed, fold=fold, device=device, genes=opt.gene_names(genes))
    models = models_of(model, sample, allow_code=allow_code)
    left_out = len(find_checkpoints(model)) - len(models)
    if fold is None and left_out:
        others = count(left_out, "model")
        show(f"model: that of all slides; {others} of folds left out (--fold takes one)")
    network = create_encoder(encoder or encoder_of(models), weights, weights_root)
    settings = PredictSettings(
        sample,
        EmbedSettings(batch_size, str(pick_device(device)), precision, workers, engine),
        pitch_um,
        layout,
        min_tissue,
        keep_patches=keep_patches,
        keep_embeddings=keep_embeddings,
    )
    if dry_run:
        plan = estimate(found, models, out, network, settings, share=chosen)
        add_result(plan, n_spots=plan.n_spots, seconds=plan.seconds)
        show(*plan.lines())
        return
    page = report_file(out, chosen)

    def report(slide: PredictedSlide) -> None:
        add_result(slide, report=page)
        _show(slide)

    with progress() as bar:
        done = run(
            found,
            models,
            out,
            network,
            settings,
            overwrite=overwrite,
            progress=bar,
            report=report,
            share=chosen,
        )
    if done:
        show(f"report: {page}")
        _follow([slide.path for slide in done], out)
    elif part:
        show(f"part {part} has no slides")


def _follow(files: list[Path], out: Path) -> None:
    """Print the command that usually follows predictions."""
    if len(files) > 1:
        show_next("summarise", *files, "--out", out / "summary")
    else:
        show_next("export", files[0], "--to", files[0].with_suffix(".csv"))


def _slides(paths: list[Path], spots: Path | None, options: SourceOptions) -> list[SlideImage]:
    """Return the slides of all paths; options of one slide are refused for several."""
    from stflow_graph.preparation.slide_places import slides_of

    single = {"--spots": spots, "--id": options.name, "--image": options.image}
    named = [option for option, value in single.items() if value is not None]
    if len(paths) > 1 and named:
        raise BadParameter(f"{named[0]} is of one slide; there are {len(paths)}")
    found = [slide for path in paths for slide in slides_of(path, spots, options)]
    if len(found) > 1 and named:
        raise BadParameter(f"{named[0]} is of one slide; {paths[0]} has {len(found)}")
    return found


def _show(done: PredictedSlide) -> None:
    note = ("" if done.fold is None else f", fold {done.fold}") + range_note(done.in_range)
    outcome = state(done.up_to_date, done.replaced)
    show(
        f"{done.slide}: {count(done.n_spots, 'spot')}{note}: {done.path} {outcome}; "
        f"overlay: {done.overlay}"
    )
    show_range(done.slide, done.in_range)
    for warning in done.warnings if done.up_to_date else ():  # otherwise they have just been logged
        show(f"{done.slide}: {warning}", style="yellow")
