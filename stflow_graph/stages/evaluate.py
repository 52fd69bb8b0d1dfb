"""The evaluation stage: predictions against the truth, beside baselines; it has no model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stflow_graph.errors import Failures
from stflow_graph.evaluation.align import align_slides
from stflow_graph.evaluation.files import read_predictions
from stflow_graph.evaluation.notes import mixed_protocols, protocols_of, slide_notes
from stflow_graph.evaluation.output import write_results
from stflow_graph.evaluation.records import Evaluation, SlideEvaluation
from stflow_graph.evaluation.scores import score_slide
from stflow_graph.evaluation.table import make_table
from stflow_graph.evaluation.training_side import add_baselines
from stflow_graph.io.gene_names import DEFAULT_MATCHING, GeneMatching
from stflow_graph.io.outputs import check_output_folder

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def evaluate(
    predictions: Sequence[str | Path | AnnData],
    truth: str | Path | AnnData | Mapping[str, AnnData],
    out: str | Path | None = None,
    *,
    baselines: bool = False,
    slow_baselines: bool = False,
    source_dataroot: str | Path | None = None,
    embed_dataroot: str | Path | None = None,
    matching: GeneMatching = DEFAULT_MATCHING,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    done: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Score predictions against measured expression; write JSON, CSV and a report.

    Counts are transformed to the predictions' target, spots are matched by barcode and genes by
    name; at least half of the genes must be in the truth. Predictions of one slide by several
    models are compared on it, spot by spot.

    Args:
        predictions: outputs of ``sample``: files, folders of files, or in memory.
        truth: raw counts: the .h5ad of the only slide, a folder with ``<slide>.h5ad``, a HEST-bench
            root or data set folder; in memory the only slide's, or slide to counts.
        out: folder of the results; None writes nothing.
        baselines: fit the baselines on the training slides of each prediction's fold; they need
            both roots, as those in the provenance are not opened.
        slow_baselines: also those that take a minute per fold, ``evaluation.baselines.SLOW``.
        source_dataroot: root with the training slides.
        embed_dataroot: root with their embeddings.
        matching: how genes with other names are matched.
        n_bootstrap: resamples of the spots for the 95% intervals.
        seed: of resamples, thinning and baselines.
        progress: called with the name of each step.
        done: called once the results are there, also where some slides failed.

    Raises:
        BadInput: data that cannot be used or do not belong together; nothing is written.
        SomeFailed: slides failed with an error that is not of this package; the results of the
            others are written.
    """
    report, out = progress or logger.info, None if out is None else check_output_folder(out)
    report("reading")
    by_slide = read_predictions(predictions)
    failures = Failures(len(by_slide))
    slides = align_slides(by_slide, truth, matching, seed, failures)
    by_slide = {slide.name: by_slide[slide.name] for slide in slides}
    protocols = protocols_of(by_slide)
    notes = mixed_protocols(protocols) + [note for slide in slides for note in slide_notes(slide)]
    if baselines or slow_baselines:
        roots = source_dataroot, embed_dataroot
        notes += add_baselines(
            slides, by_slide, *roots, matching, slow=slow_baselines, seed=seed, report=report
        )
    slides = _score(slides, failures, report)
    report("bootstrap")
    rows, best = make_table(slides, n_bootstrap, seed)
    names = sorted({name for of_dataset in protocols.values() for name in of_dataset})
    target = slides[0].target
    evaluation = Evaluation(target, slides, rows, best, notes, n_bootstrap, seed, out, names)
    if out is not None:
        report("report")
        write_results(evaluation, out)
    if done is not None:
        done(evaluation)
    failures.check()
    return evaluation


def _score(
    slides: Sequence[SlideEvaluation], failures: Failures, report: Callable[[str], None]
) -> list[SlideEvaluation]:
    """Score slides and return those that did not fail, at least one."""
    scored = []
    for slide in slides:
        report(f"scoring {slide.name}")
        with failures.foreign_of(slide.name):
            score_slide(slide)
            scored.append(slide)
    if not scored:
        failures.check()
    return scored
