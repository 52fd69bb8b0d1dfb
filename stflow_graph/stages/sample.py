"""The sample stage: a checkpoint and embeddings to predictions; it has no access to the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.inference.sampling import Sampled, load_models, model_for, sample_file
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.io.atomic import check_name, check_slide_names
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.models.build import pick_device
from stflow_graph.models.precision import check_precision
from stflow_graph.parallel.parts import size_of
from stflow_graph.parallel.share import Share, attempt_shared


def sample(
    source: str | Path,
    embeddings: Sequence[str | Path],
    out: str | Path,
    settings: SampleSettings | None = None,
    *,
    overwrite: bool = False,
    allow_code: bool = False,
    report: Callable[[Sampled], None] | None = None,
    share: Share | None = None,
) -> list[Sampled]:
    """Predict the expression of slides from their embeddings and write ``out/<slide>.h5ad``.

    Of a run with several folds, a slide takes the fold that held it out; a slide of none of the
    folds takes ``settings.fold``, or the first one.

    Args:
        source: a run folder of ``train``, a fold's folder or a checkpoint folder.
        embeddings: embedding files, or folders of them.
        out: folder of the predictions.
        settings: number of samples, seed, device, measured spots; None: the mean alone.
        overwrite: overwrite existing predictions.
        allow_code: run the code of a layer that is neither ours nor PyG's.
        report: called after every slide.
        share: of a part of an array's jobs, or of a rank; None: all slides.

    Raises:
        BadInput: a file that cannot be used, when it is the only one.
        BadConfig: an unknown device, one that lacks the precision, embeddings that do not fit the
            checkpoint, one image or file of measured spots for several slides, or the checkpoint
            names code and ``allow_code`` is not set.
        SomeFailed: some of several slides failed; the others are written.
    """
    settings = settings or SampleSettings()
    check_output_folder(out)
    # refused once, not for every slide
    check_precision(settings.precision, pick_device(settings.device))
    models = load_models(source, settings.fold, settings.device, allow_code)
    files = _embedding_files(embeddings)
    _check_observed(settings, [file.stem for file in files])
    _check_image(settings, len(files))

    def one(file: Path) -> Sampled:
        check_name(file.stem, file, "slide name")
        model = model_for(file.stem, models)
        return sample_file(model, file, Path(out), settings, overwrite=overwrite)

    return attempt_shared(
        files,
        one,
        name=lambda file: file.stem,
        n_bytes=size_of,
        share=share,
        report=report,
    )


def _embedding_files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(path.glob("*.h5")) or sorted(path.glob("*.pt"))
        if not inside:
            raise BadInput(path, "folder", unquoted("no .h5 or .pt file"), "embedding files")
        files += inside
    check_slide_names([(file.stem, file) for file in files])
    return files


def _check_image(settings: SampleSettings, n_slides: int) -> None:
    """Refuse one image for several slides: it would lie under the spots of another one's tissue."""
    if settings.image is not None and n_slides > 1 and not Path(settings.image).is_dir():
        fix = "give a folder of <slide>.jpg, or one slide at a time"
        raise BadConfig(f"image: one file for {n_slides} slides. Fix: {fix}")


def _check_observed(settings: SampleSettings, slides: Sequence[str]) -> None:
    """Refuse one file of measured spots for several slides, and a folder with none for any."""
    observed = settings.observed
    if not isinstance(observed, str | Path):
        if observed is not None and len(slides) > 1:
            raise BadConfig("observed: one AnnData for several slides. Fix: one slide at a time")
        return
    folder = Path(observed)
    if not folder.is_dir():
        if len(slides) > 1:
            raise BadConfig(
                f"observed: one file for {len(slides)} slides. Fix: give a folder of <slide>.h5ad"
            )
    elif all(settings.observed_of(slide) is None for slide in slides):
        found = unquoted(f"no file of {', '.join(slides[:3])}")
        raise BadInput(folder, "observed", found, "<slide>.h5ad of one or more of the slides")
