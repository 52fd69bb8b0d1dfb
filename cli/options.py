"""Options that several commands share: the name and the help; type and default are the command's.

``device: Device[str] = "auto"`` is an option of text with a default, ``Device[str | None] = None``
one that may be left out.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from typer import BadParameter, Exit, Option

from stflow_graph.parallel.ranks import is_rank

from .display import be_quiet

if TYPE_CHECKING:
    from stflow_graph.parallel.share import Share

T = TypeVar("T")

# data
SourceDataroot = Annotated[T, Option(help="HEST-bench root or data set folder.")]
EmbedDataroot = Annotated[T, Option(help="Root of the embeddings.")]
Datasets = Annotated[list[str] | None, Option(help="Data sets, one or more. (default: all)")]
Folds = Annotated[
    list[str] | None,
    Option("--folds", "--fold", help="Folds, one or more; all: one model of all slides."),
]
AllowPatientOverlap = Annotated[
    T, Option("--allow-patient-overlap", help="Accept patients in both training and test slides.")
]
GeneList = Annotated[T, Option(help="JSON file of gene names.")]
ChosenGenes = Annotated[
    list[str] | None,
    Option("--genes", help="Write these genes only: ERBB2 FASN, ERBB2,FASN or a gene list."),
]
GeneAliases = Annotated[T, Option(help="Table of gene aliases, or a GTF file.")]
DuplicateGenes = Annotated[T, Option(help="Duplicate gene names: refuse, sum or first.")]
MissingGenes = Annotated[
    T, Option(help="Genes of the list that a slide lacks: refuse, or mask them there.")
]
AllowPatchSize = Annotated[
    T, Option("--allow-patch-size", help="Accept patches of another physical size.")
]
AllowMissingSpots = Annotated[
    T,
    Option(
        "--allow-missing-spots",
        help="Accept slides with embeddings of under half of the measured spots.",
    ),
]
Target = Annotated[T, Option(help="Target: log1p or log1p_normalised.")]

# encoders
WeightsRoot = Annotated[Path | None, Option(help="Folder of encoder weights, <encoder>/<file>.")]
PatchBatch = Annotated[int, Option(min=1, max=65_536, help="Patches per batch.")]
Precision = Annotated[str, Option(help="auto, fp32, bf16 or fp16.")]
Engine = Annotated[str, Option(help="auto, torch or onnx (ONNX Runtime, CNNs on CPUs).")]

# spots and patches of an image
UmPerPx = Annotated[
    float | None, Option(help="Micrometres per pixel. (default: of the image's metadata)")
]
PatchPx = Annotated[int, Option(min=8, max=4096, help="Patch width, px.")]
PatchUm = Annotated[T, Option(min=0.001, max=1e5, help="Physical patch width, µm.")]
PitchUm = Annotated[T, Option(min=0.001, max=1e5, help="Grid spacing, µm.")]
Layout = Annotated[Literal["hexagonal", "square"], Option(help="Layout of the grid.")]
MinTissue = Annotated[float, Option(min=0, max=1, help="Minimum tissue fraction of a grid patch.")]
Spots = Annotated[
    Path | None, Option(help="Spot table of the image. (default: a grid on the tissue)")
]

Workers = Annotated[int, Option(min=0, max=1024, help="Reader processes; 0: one thread.")]

# sampling and running
NSamples = Annotated[
    int,
    Option(min=1, help="Samples to draw per spot (1: mean only; 16 or more for uncertainty)."),
]
Fold = Annotated[int | None, Option(help="Fold of the run to use.")]
AllowCode = Annotated[
    bool, Option("--allow-code", help="Run the code of a custom layer that the model names.")
]
NetworkPrecision = Annotated[T, Option(help="float32, tf32 or bf16 (GPUs).")]
Sampler = Annotated[T, Option(help="euler, heun, stflow or estflow.")]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Random seed.")]
Device = Annotated[T, Option(help="auto, cpu, cuda, cuda:1, ...")]
Overwrite = Annotated[bool, Option("--overwrite", help="Overwrite existing outputs.")]
PartOfSlides = Annotated[
    str | None,
    Option("--part", metavar="I/N", help="Part I of N of the slides; auto: a SLURM array's task."),
]

NProc = Annotated[
    int | None,
    Option(min=1, max=1024, help="Processes on this machine that share the work (torchrun)."),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object with the results.")]


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option ``--json``, which ``main`` reads for all commands."""

    @functools.wraps(command)
    def run(*, as_json: bool, **options: Any) -> None:
        del as_json
        command(**options)

    return _with_option(run, command, "as_json", Json, False)


def with_ranks(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option ``--nproc``, which runs it as the ranks of ``torchrun``."""

    @functools.wraps(command)
    def run(*, nproc: int | None, **options: Any) -> None:
        if nproc is not None and nproc > 1 and not is_rank():
            from stflow_graph.io.process import available_cores
            from stflow_graph.parallel.launch import launch

            be_quiet()
            n_threads = max(1, available_cores() // nproc)
            raise Exit(launch(sys.argv[1:], nproc, n_threads))
        if is_rank() and os.environ["RANK"] != "0":
            be_quiet()
        command(**options)

    return _with_option(run, command, "nproc", NProc, None)


def _with_option(
    run: Callable[..., None], command: Callable[..., None], name: str, annotation: Any, default: Any
) -> Callable[..., None]:
    """Give a wrapper of a command a further option of its own."""
    kind = inspect.Parameter.KEYWORD_ONLY
    option = inspect.Parameter(name, kind, default=default, annotation=annotation)
    # evaluated here, as typer does not evaluate those of a signature that is set
    signature = inspect.signature(command, eval_str=True)
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, name: annotation}
    return run


def numbers_or_all(folds: list[str] | None) -> tuple[int, ...] | Literal["all"]:
    """Return the folds that ``--folds`` names; none stand for those of ``splits/``."""
    if folds == ["all"]:
        return "all"
    if not all(text.isdecimal() and len(text) < 10 for text in folds or ()):
        raise BadParameter(f"--folds: {' '.join(folds or ())[:99]!r}: expected numbers, or all")
    return tuple(map(int, folds or ()))


def share_of(text: str | None) -> Share | None:
    """Return the part that ``--part`` names, or this rank; None stands for all slides."""
    from stflow_graph.errors import BadConfig
    from stflow_graph.parallel.parts import Part
    from stflow_graph.parallel.ranks import join

    if text is None:
        return join()
    if is_rank():
        raise BadParameter("--part: the ranks of torchrun share the slides already")
    try:
        return Part.parse(text, os.environ)
    except BadConfig as error:
        raise BadParameter(f"--part: {error}") from None


def gene_names(genes: list[str] | None) -> tuple[str, ...]:
    """Return the genes that ``--genes`` names, with blanks or commas between them or in a file."""
    from stflow_graph.data.genes import read_gene_list

    names = list[str]()
    for word in genes or ():
        if word.endswith(".json"):
            names += read_gene_list(word)
        else:
            names += [name.strip() for name in word.split(",") if name.strip()]
    return tuple(names)
