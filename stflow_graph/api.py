"""The four stages in memory, for notebooks: ``embed``, ``train``, ``sample``, ``evaluate``.

They compute what the command line computes: the same slides, settings and seed give the same
figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stflow_graph.config import OPTIONS, Config, load_config
from stflow_graph.data.genes import check_measured, read_gene_list
from stflow_graph.data.load import check_one_patch_size
from stflow_graph.data.protocol import MASKED
from stflow_graph.data.slide import Slide
from stflow_graph.encoders import Encoder, create_encoder
from stflow_graph.errors import BadConfig, BadInput, unquoted
from stflow_graph.evaluation.records import Evaluation
from stflow_graph.inference.inputs import check_enough_spots
from stflow_graph.inference.settings import SampleSettings
from stflow_graph.inference.slide_model import SlideModel
from stflow_graph.io.gene_aliases import gene_matching
from stflow_graph.models.build import pick_device
from stflow_graph.preparation.embedding import embed_slide
from stflow_graph.preparation.engine import EmbedSettings
from stflow_graph.stages.evaluate import evaluate as run_evaluation
from stflow_graph.stages.train import missing_genes, physical_sizes, surroundings
from stflow_graph.training.fold import FoldTraining
from stflow_graph.training.loop import EpochRecord

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Slide", "SlideModel", "embed", "evaluate", "sample", "train"]

# what the slides in memory decide
_NOT_OPTIONS = (
    "source_dataroot",
    "embed_dataroot",
    "datasets",
    "encoder",
    "gene_list",
    "folds",
    "allow_patient_overlap",
)


def embed(
    slides: Sequence[Slide],
    encoder: str | Encoder = "efficientnet_lite0",
    *,
    batch_size: int = 64,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Slide]:
    """Return the slides with the embeddings of their patches.

    Args:
        slides: with patches.
        encoder: a name, or what ``encoders.create_encoder`` made.
        batch_size: patches at a time; it does not change the embeddings beyond rounding.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        progress: called with (slide, spots done, spots in all).

    Raises:
        BadConfig: an unknown encoder, or weights that do not fit.
        BadInput: a slide without patches, or patches that cannot be used.
    """
    network = create_encoder(encoder) if isinstance(encoder, str) else encoder
    settings = EmbedSettings(batch_size, str(pick_device(device)))
    return [embed_slide(slide, network, settings, progress=progress) for slide in slides]


def train(
    slides: Sequence[Slide],
    genes: Sequence[str] | str | Path,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    report: Callable[[int, EpochRecord], None] | None = None,
    **options: Any,
) -> SlideModel:
    """Train a model on slides, as ``stflow-graph train`` does on a fold.

    Args:
        slides: with embeddings of one encoder and raw counts; three or more are held out whole
            in turn, one or two in strips.
        genes: the genes to learn, or a JSON file of them; with ``missing_genes="mask"`` slides
            may lack some, which are masked there.
        config: a TOML file, see ``config.load_config``.
        settings: dotted names to values, such as ``{"train.ema_decay": 0.9}``.
        folder: where the state of the training is kept, to go on from; None keeps none.
        report: called after every epoch with the member and the epoch.
        **options: options of the command line by name, such as ``target="log1p_normalised"``,
            ``epochs=30``, ``seed=1``; they win over ``settings``, and these over ``config``.

    Raises:
        BadConfig: an option that is not known, or a value out of range.
        BadInput: no slides, one twice, slides that do not fit together, or unusable counts.
        Diverged: a loss that is not finite.
    """
    resolved = _config(slides, config, {**(settings or {}), **_dotted(options)})
    if isinstance(genes, str | Path):
        names = read_gene_list(Path(genes))
        data = resolved.data.model_copy(update={"gene_list": Path(genes).name})
        resolved = resolved.model_copy(update={"data": data})
    else:
        names = list(genes)
    data = resolved.data
    matching = gene_matching(data.gene_aliases, data.duplicate_genes, data.missing_genes)
    learned = [slide.with_target(names, data.target, matching) for slide in slides]
    for slide in learned:
        check_enough_spots(len(slide), resolved.graph.n_neighbors, slide.file or slide.name)
    check_measured(names, learned, "train")
    if not data.allow_patch_size:
        check_one_patch_size(learned)

    def on_epoch(histories: list[list[EpochRecord]], member: int) -> None:
        if report:
            report(member, histories[member][-1])

    with tempfile.TemporaryDirectory() as temporary:
        states = Path(temporary if folder is None else folder)
        training = FoldTraining(learned, resolved, states, fold=0, report=on_epoch)
        fitted = training.finish()
    masked = [MASKED] if data.missing_genes == "mask" else []
    provenance = {
        "dataset": ", ".join(sorted({slide.dataset for slide in slides} - {""})) or None,
        "train_slides": [slide.name for slide in slides],
        "test_slides": [],
        **missing_genes(learned, resolved),
        **physical_sizes(learned),
        "protocol": " | ".join(
            [data.target, data.gene_list or "genes given", *masked, "no test slides"]
        ),
        **surroundings(resolved),
    }
    return SlideModel(fitted.checkpoint(names, learned[0].width, provenance))


def sample(
    model: SlideModel,
    slide: Slide,
    *,
    n_samples: int = 1,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    image: str | Path | None = None,
    observed: str | Path | AnnData | None = None,
    denoise_observed: bool = False,
) -> AnnData:
    """Predict a slide's expression from its embeddings; see ``SlideModel.predict``.

    Args:
        model: from :func:`train` or ``SlideModel.from_pretrained``.
        slide: with embeddings; its counts are not looked at.
        n_samples: S; of 1 only the mean is kept.
        seed: of the noise.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        precision: of networks' arithmetic: ``"float32"``, ``"tf32"`` or ``"bf16"``.
        image: the H&E image, of which the prediction gets a small copy to be drawn on.
        observed: raw counts of some of the spots, which inform the others, see ``data.observed``;
            ``obs["observed"]`` and ``var["observed"]`` of the result say what they are.
        denoise_observed: give the model's estimate of observed values, not the values.

    Raises:
        BadConfig: the model does not fit, or has no field to be informed, or the device lacks the
            precision.
        BadInput: too few spots, or observed counts that cannot be used.
    """
    settings = SampleSettings(
        n_samples,
        seed,
        device=device,
        precision=precision,
        image=image,
        observed=observed,
        denoise_observed=denoise_observed,
    )
    return model.predict(slide, settings)


def evaluate(
    predictions: AnnData | Sequence[AnnData],
    truth: AnnData | Mapping[str, AnnData],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions against raw counts; ``table()`` of the result is a data frame.

    Args:
        predictions: what :func:`sample` gave, of one slide or of several.
        truth: counts of the only slide, or slide to counts.
        n_bootstrap: resamples of the spots for the 95% intervals.
        seed: of everything random.

    Raises:
        BadInput: data that cannot be used or do not belong together.
    """
    several = predictions if isinstance(predictions, Sequence) else [predictions]
    return run_evaluation(several, truth, n_bootstrap=n_bootstrap, seed=seed)


def _dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    names = {name: place for name, place in OPTIONS.items() if name not in _NOT_OPTIONS}
    unknown = sorted(options.keys() - names.keys())
    if unknown:
        raise BadConfig(f"train: unknown option {unknown[0]!r}; known: {', '.join(names)}")
    return {names[name]: value for name, value in options.items()}


def _config(
    slides: Sequence[Slide], file: str | Path | None, settings: Mapping[str, Any]
) -> Config:
    """Return the configuration of a training on these slides, which must fit together."""
    names = [slide.name for slide in slides]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        found = unquoted(f"{twice[:3]} twice" if twice else "none")
        raise BadInput("train", "slides", found, "at least one, each once")
    first = slides[0]
    for slide in slides:
        made = unquoted(f"{slide.width} channels of encoder {slide.encoder!r}")
        if not slide.width:
            fix = "api.embed(slides), or Slide.from_anndata(adata, embeddings=...)"
            raise BadInput(slide.file or slide.name, "embeddings", unquoted("none"), "some", fix)
        if (slide.width, slide.encoder) != (first.width, first.encoder):
            expected = f"{first.width} of {first.encoder!r} as of {first.name}"
            raise BadInput(slide.file or slide.name, "embeddings", made, expected)
    nowhere = {"data.source_dataroot": "", "data.embed_dataroot": "", "data.gene_list": ""}
    return load_config(file, {**settings, **nowhere, "data.encoder": first.encoder})
