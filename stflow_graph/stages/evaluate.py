"""The evaluation stage: predictions against the truth, beside baselines; it has no model."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stflow_graph.data.normalise import TARGETS, to_target
from stflow_graph.data.places import to_centres
from stflow_graph.data.slide import match_barcodes
from stflow_graph.data.splits import Dataset, find_datasets
from stflow_graph.errors import BadInput, unquoted
from stflow_graph.evaluation.baselines import (
    DARKNESS,
    NAMES,
    Predictor,
    TrainingSide,
    darkness,
    fit_baselines,
)
from stflow_graph.evaluation.report import render_report
from stflow_graph.evaluation.scores import (
    CEILING,
    TRUE_MEAN,
    Evaluation,
    SlideEvaluation,
    as_csv,
    as_json,
    make_table,
    rng_for,
    score_slide,
)
from stflow_graph.io.atomic import check_name, sha256, write_json, write_text
from stflow_graph.io.cells import printable
from stflow_graph.io.expression import Expression, expression_of, read_expression
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.patches import CENTRE
from stflow_graph.io.predictions import Prediction, prediction_of, read_prediction
from stflow_graph.stats import metrics
from stflow_graph.stats.resampling import noise_ceiling

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_FEWEST_SPOTS = 3
# of the genes predicted that the truth must have
_LEAST_GENES = 0.5
_RESERVED = (CEILING, TRUE_MEAN, *NAMES)


def evaluate(
    predictions: Sequence[str | Path],
    truth: str | Path,
    out: str | Path,
    *,
    baselines: bool = False,
    slow_baselines: bool = False,
    source_dataroot: str | Path | None = None,
    embed_dataroot: str | Path | None = None,
    matching: GeneMatching = DEFAULT_MATCHING,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score predictions against measured expression; write JSON, CSV and a report.

    The truth is brought to the predictions' target, spots are matched by barcode and genes by
    name; at least half of the genes must be in the truth. Files of one slide by several models are
    compared on it, spot by spot.

    Args:
        predictions: files that ``sample`` wrote, or folders of them.
        truth: the .h5ad of the only slide, or a folder with ``<slide>.h5ad``, or a HEST-bench root
            or data set folder.
        out: folder of the results.
        baselines: fit the baselines on the training slides of each prediction's fold.
        slow_baselines: also those that take a minute a fold, ``evaluation.baselines.SLOW``.
        source_dataroot: root with the training slides; None takes the one in the provenance.
        embed_dataroot: root with their embeddings; None takes the one in the provenance.
        matching: how genes are found that a slide names otherwise.
        n_bootstrap: resamples of the spots for the 95% intervals.
        seed: of everything random.
        progress: called with what is being done.

    Raises:
        BadInput: files that cannot be used or do not belong together; nothing is written.
    """
    out, report = Path(out), progress or logger.info
    if out.exists() and not out.is_dir():
        raise BadInput(out, "output", unquoted("a file"), "a folder")
    report("reading")
    files = _files(predictions)
    given = _group([_Given(file, read_prediction(file), sha256(file)) for file in files])
    slides = [
        _open_slide(label, models, *_read_truth(Path(truth), models, matching), seed)
        for label, models in given.items()
    ]
    notes = [note for each in slides for note in _notes(each)]
    if baselines or slow_baselines:
        fitted: dict[TrainingSide, dict[str, Predictor]] = {}
        for slide, models in zip(slides, given.values(), strict=True):
            report(f"baselines of {slide.name}")
            side = _training_side(list(models.values()), source_dataroot, embed_dataroot)
            side = dataclasses.replace(side, genes=tuple(slide.genes), matching=matching)
            notes += _add_baselines(slide, side, fitted, slow_baselines, seed)
    evaluation = dataclasses.replace(
        _scored(given, slides, notes, n_bootstrap, seed, report), out=out
    )
    report("report")
    html = render_report(evaluation)
    write_json(out / "metrics.json", as_json(evaluation))
    write_text(out / "metrics.csv", as_csv(evaluation))
    write_text(out / "report.html", html)
    return evaluation


def evaluate_in_memory(
    predictions: Sequence[AnnData],
    truth: AnnData | Mapping[str, AnnData],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions as :func:`evaluate` does, without files and without baselines.

    Args:
        predictions: what ``sample`` gave.
        truth: raw counts measured on the only slide, or slide to raw counts.
        n_bootstrap: resamples of the spots for the 95% intervals.
        seed: of everything random.

    Raises:
        BadInput: data that cannot be used or do not belong together.
    """
    given = _group(
        [
            _Given(Path(f"prediction {i}"), prediction_of(adata, f"prediction {i}"), None)
            for i, adata in enumerate(predictions)
        ]
    )
    firsts = {label: next(iter(models.values())).prediction for label, models in given.items()}
    if not isinstance(truth, Mapping):
        truth = {prediction.slide: truth for prediction in firsts.values()}
        if len(truth) > 1:
            found = unquoted(f"one for slides {list(truth)[:3]}")
            raise BadInput("truth", "slide", found, "slide to counts")
    slides = []
    for label, prediction in firsts.items():
        name = prediction.slide
        if name not in truth:
            raise BadInput("truth", "slide", list(truth), f"counts of slide {name!r}")
        expression = expression_of(
            truth[name], f"truth of {name}", prediction.genes, least_share=_LEAST_GENES
        )
        slides.append(_open_slide(label, given[label], expression, None, seed))
    notes = [note for slide in slides for note in _notes(slide)]
    return _scored(given, slides, notes, n_bootstrap, seed, logger.debug)


def _scored(
    given: Mapping[str, Mapping[str, _Given]],
    slides: list[SlideEvaluation],
    notes: list[str],
    n_bootstrap: int,
    seed: int,
    report: Callable[[str], None],
) -> Evaluation:
    for slide in slides:
        report(f"scoring {slide.name}")
        score_slide(slide)
    report("bootstrap")
    rows, best = make_table(slides, n_bootstrap, seed)
    protocols = _protocols(given.values())
    return Evaluation(
        slides[0].target,
        slides,
        rows,
        best,
        _mixed(protocols) + notes,
        n_bootstrap,
        seed,
        protocols=sorted({name for names in protocols.values() for name in names}),
    )


# reading


@dataclasses.dataclass(frozen=True)
class _Given:
    """A prediction, its file, and the parts of its provenance that evaluation relies on.

    Of one in memory ``path`` is what messages call it, and there is no hash.
    """

    path: Path
    prediction: Prediction
    sha256: str | None

    @property
    def key(self) -> tuple[str, str]:
        return self.text("dataset"), self.prediction.slide

    @property
    def folder(self) -> Path:
        return self.path.resolve().parent

    @property
    def train_slides(self) -> list[str]:
        names = self.prediction.provenance.get("train_slides") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadInput(self.path, "train_slides", names, "a list of slides")
        return names

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance without NaN and infinities, which JSON lacks, and the file."""
        text = json.dumps(self.prediction.provenance)
        stored = json.loads(text, parse_constant=lambda constant: None)
        return {**stored, "file": str(self.path), "sha256": self.sha256}

    @property
    def fold(self) -> int | None:
        fold = self.prediction.provenance.get("fold")
        return fold if isinstance(fold, int) else None

    def text(self, name: str) -> str:
        value = self.prediction.provenance.get(name)
        if not isinstance(value, str | None):
            raise BadInput(self.path, name, value, "text")
        return value or ""


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
        if not inside:
            raise BadInput(path, "folder", unquoted("no .h5ad file"), "predictions")
        files += inside
    return files


def _group(given: Sequence[_Given]) -> dict[str, dict[str, _Given]]:
    """Return for each slide's label the prediction of each model."""
    for each in given:
        check_name(each.prediction.slide, each.path, "slide")
        for name in ("dataset", "encoder"):  # they become parts of paths
            if each.text(name):
                check_name(each.text(name), each.path, name)
        target, wanted = each.text("target"), given[0].text("target")
        if target not in TARGETS:
            raise BadInput(each.path, "target", target, " or ".join(TARGETS))
        if target != wanted:
            fix = "evaluate each target in a run of its own"
            raise BadInput(each.path, "target", target, f"{wanted!r} as in {given[0].path}", fix)
    names = _model_names(given)
    shared = {key[1] for key in {each.key for each in given}}
    qualified = len(shared) < len({each.key for each in given})
    slides: dict[str, dict[str, _Given]] = {}
    for each, name in zip(given, names, strict=True):
        models = slides.setdefault("/".join(each.key) if qualified else each.key[1], {})
        if name in models:
            found = unquoted(f"{each.prediction.slide!r} also in {models[name].path}")
            raise BadInput(each.path, "slide", found, "one prediction of a slide by a model")
        models[name] = each
    return slides


def _model_names(given: Sequence[_Given]) -> list[str]:
    """Name models by denoiser, and by folder where folders hold the same slides."""
    names = []
    for each in given:
        name = printable(each.text("denoiser")) or "model"
        alike = [other for other in given if other.text("denoiser") == each.text("denoiser")]
        homes = {(other.key, other.folder) for other in alike}
        if len(homes) > len({key for key, _ in homes}):
            name = f"{name} ({_distinct({other.folder for other in alike})[each.folder]})"
        names.append(f"{name} (model)" if name in _RESERVED else name)
    return names


def _distinct(folders: set[Path]) -> dict[Path, str]:
    """Return the parts of the paths that tell the folders apart."""
    parts = {folder: list(folder.parts) for folder in folders}
    for end in (0, -1):
        while all(parts.values()) and len({each[end] for each in parts.values()}) == 1:
            for each in parts.values():
                each.pop(end)
    if not all(parts.values()):
        return {folder: str(folder) for folder in folders}
    return {folder: "/".join(each) for folder, each in parts.items()}


def _read_truth(
    truth: Path, models: Mapping[str, _Given], matching: GeneMatching
) -> tuple[Expression, Path]:
    """Return the counts of the slide of these predictions, and their file."""
    first = next(iter(models.values()))
    file = _truth_file(truth, *first.key)
    genes = first.prediction.genes
    return read_expression(file, genes, matching=matching, least_share=_LEAST_GENES), file


def _open_slide(
    label: str,
    models: Mapping[str, _Given],
    expression: Expression,
    file: Path | None,
    seed: int,
) -> SlideEvaluation:
    """Bring all predictions of a slide to the same spots and genes as its truth."""
    first = next(iter(models.values()))
    prediction = first.prediction
    measured = file or f"truth of {prediction.slide}"
    rows, places = match_barcodes(prediction.barcodes, expression.barcodes, first.path, measured)
    if len(rows) < _FEWEST_SPOTS:
        found = unquoted(f"{len(rows)} spots with a truth")
        raise BadInput(first.path, "barcodes", found, f"at least {_FEWEST_SPOTS} to correlate")
    counts, total = expression.counts[places], expression.total[places]
    target = first.text("target")
    y = to_target(counts, total, target)
    barcodes = [prediction.barcodes[i] for i in rows]
    coords = prediction.coords[rows]
    if expression.coords is not None:
        centres = expression.coords[places]
        coords = to_centres(coords, centres, file=first.path, other=measured, stated=CENTRE).coords
    means, samples = _aligned(models, barcodes, expression.genes)
    if expression.true_mean is not None and target == "log1p":
        means[TRUE_MEAN] = expression.true_mean[places]
    trained_on = {name for each in models.values() for name in each.train_slides}
    return SlideEvaluation(
        id=prediction.slide,
        name=label,
        dataset=first.key[0],
        fold=first.fold,
        target=target,
        genes=expression.genes,
        barcodes=barcodes,
        coords=coords,
        um_per_px=expression.um_per_px,
        truth=y,
        truth_file=str(file or ""),
        ceiling=noise_ceiling(
            counts.toarray(),
            total,
            lambda half, n: to_target(sp.csr_matrix(half), n, target),
            rng_for(seed, label, "thinning"),
        ),
        moran=metrics.morans_i(y, metrics.neighbour_mean(coords)),
        n_predicted=len(prediction.barcodes),
        held_out=prediction.slide not in trained_on if trained_on else None,
        predictions=means,
        samples=samples,
        scores={},
        provenance={name: each.provenance for name, each in models.items()},
        absent_genes=expression.absent,
        matched_genes=expression.matched,
    )


def _aligned(
    models: Mapping[str, _Given], barcodes: Sequence[str], genes: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return each model's mean ``[N, G]`` and samples ``[S, N, G]`` of these spots and genes."""
    first = next(iter(models.values()))
    means, samples = {}, {}
    for name, each in models.items():
        rows, columns = _places(each, first, barcodes, genes)
        means[name] = each.prediction.mean[rows, columns]
        if each.prediction.samples is not None and len(each.prediction.samples) > 1:
            samples[name] = each.prediction.samples[:, rows, columns]
    return means, samples


def _truth_file(truth: Path, dataset: str, slide: str) -> Path:
    if truth.is_file():
        return truth
    places = [folder / f"{slide}.h5ad" for folder in (truth, truth / "adata")]
    if dataset:
        places.append(truth / dataset / "adata" / f"{slide}.h5ad")
    for place in places:
        if place.is_file():
            return place
    raise BadInput(truth, "truth", unquoted(f"no {slide}.h5ad"), f"expression of slide {slide}")


def _places(
    given: _Given, first: _Given, barcodes: Sequence[str], genes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return where a prediction has these spots and genes of the first one, for ``[N, G]``."""
    prediction = given.prediction
    differ = sorted(set(prediction.genes) ^ set(first.prediction.genes))
    if differ:
        found = unquoted(f"{len(differ)} others, such as {differ[:3]}")
        raise BadInput(given.path, "var_names", found, f"the genes of {first.path}")
    if set(prediction.barcodes) != set(first.prediction.barcodes):
        here = set(prediction.barcodes)
        absent = [barcode for barcode in first.prediction.barcodes if barcode not in here]
        n, wanted = len(prediction.barcodes), len(first.prediction.barcodes)
        found = unquoted(f"{n} spots, {len(absent)} absent, such as {absent[:3]}")
        raise BadInput(given.path, "obs_names", found, f"the {wanted} spots of {first.path}")
    spot = {barcode: i for i, barcode in enumerate(prediction.barcodes)}
    gene = {name: i for i, name in enumerate(prediction.genes)}
    rows, columns = np.ix_([spot[b] for b in barcodes], [gene[g] for g in genes])
    return rows, columns


def _protocols(given: Iterable[Mapping[str, _Given]]) -> dict[str, list[str]]:
    """Return for each data set the protocols that its predictions name."""
    found: dict[str, list[str]] = {}
    for each in (model for models in given for model in models.values()):
        name = printable(each.text("protocol"))
        if name and name not in found.setdefault(each.text("dataset"), []):
            found[each.text("dataset")].append(name)
    return found


def _mixed(protocols: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{dataset}: {len(names)} protocols in one table, whose scores do not compare: "
        + "; ".join(names)
        for dataset, names in protocols.items()
        if len(names) > 1
    ]


def _notes(slide: SlideEvaluation) -> list[str]:
    notes = []
    if slide.n_predicted > len(slide):
        without = slide.n_predicted - len(slide)
        notes.append(f"{slide.name}: {without} of {slide.n_predicted} spots have no truth")
    if slide.matched_genes:
        notes.append(f"{slide.name}: {slide.matched_genes}")
    if slide.absent_genes:
        absent, n = slide.absent_genes, len(slide.absent_genes) + len(slide.genes)
        names = printable(", ".join(absent[:5])) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{slide.name}: {len(absent)} of {n} genes are not in the truth ({names})")
    if slide.constant_genes:
        count, genes = len(slide.constant_genes), printable(", ".join(slide.constant_genes[:5]))
        notes.append(
            f"{slide.name}: {count} of {len(slide.genes)} genes are constant in the truth and "
            f"are left out of means of correlations ({genes}{', ...' if count > 5 else ''})"
        )
    if slide.held_out is False:
        notes.append(f"{slide.name}: a model was trained on this slide; its score shows memory")
    return notes


# baselines


def _training_side(
    models: Sequence[_Given], source: str | Path | None, embed: str | Path | None
) -> TrainingSide:
    """Return what the models of a slide were trained on, which must be the same."""
    first = models[0]
    for other in models[1:]:
        for name in ("train_slides", "encoder"):
            found, expected = (g.prediction.provenance.get(name) for g in (other, first))
            if found != expected:
                fix = "evaluate them in runs of their own, or without --baselines"
                raise BadInput(other.path, name, found, f"the same as in {first.path}", fix)
    roots = {"source_dataroot": source, "embed_dataroot": embed}
    for name, root in roots.items():
        roots[name] = root or first.text(name)
        if not roots[name]:
            fix = f"give --{name.replace('_', '-')}"
            raise BadInput(first.path, name, None, "the root that trained the model", fix)
    return TrainingSide(
        _dataset(first, str(roots["source_dataroot"])),
        str(roots["embed_dataroot"]),
        first.text("encoder"),
        first.text("target"),
        tuple(first.prediction.genes),
        tuple(first.train_slides),
    )


def _dataset(given: _Given, root: str) -> Dataset:
    name = given.text("dataset")
    # a data set folder may have been renamed since
    found = find_datasets(root, [name] if name and not (Path(root) / "splits").is_dir() else [])
    if len(found) > 1:
        raise BadInput(given.path, "dataset", None, f"a data set in {root}")
    return found[0]


def _add_baselines(
    slide: SlideEvaluation,
    side: TrainingSide,
    fitted: dict[TrainingSide, dict[str, Predictor]],
    slow: bool,
    seed: int,
) -> list[str]:
    """Add the baselines' predictions of a slide; return what had to be left out."""
    if slide.id in side.slides:
        return [f"{slide.name}: no baselines, as they would be fitted on this slide itself"]
    if side not in fitted:
        fitted[side] = fit_baselines(side.load(), slow=slow, seed=seed)
    embedded = side.load_other(slide.id, slide.barcodes, slide.coords)
    for name, predictor in fitted[side].items():
        slide.predictions[name] = predictor(embedded)
    patches = side.dataset.path / "patches" / f"{slide.id}.h5"
    if not patches.is_file():
        return [f"{slide.name}: no row darkness, as there is no file {patches}"]
    dark = darkness(patches, slide.barcodes)
    slide.predictions[DARKNESS] = np.repeat(dark[:, None], len(slide.genes), axis=1)
    return []
