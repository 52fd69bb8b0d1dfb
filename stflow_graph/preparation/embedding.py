"""Embedding patches with a patch encoder: files to files, or a slide in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from stflow_graph.data.barcodes import rows_of
from stflow_graph.data.coordinates import patch_centres
from stflow_graph.data.slide import Slide
from stflow_graph.encoders import Encoder
from stflow_graph.errors import BadInput, OutOfMemory, unquoted
from stflow_graph.images.stain import NO_STAIN, StainMeter
from stflow_graph.io.embeddings import FORMAT, read_attrs, write_embeddings
from stflow_graph.io.freed_memory import freed_memory_kept
from stflow_graph.io.outputs import check_output_file
from stflow_graph.io.patches import open_patches
from stflow_graph.io.versions import unchanged
from stflow_graph.parallel.ahead import results_ahead
from stflow_graph.parallel.parts import size_of
from stflow_graph.parallel.share import Share, attempt_shared
from stflow_graph.preparation.cut_patches import Progress
from stflow_graph.preparation.engine import DEFAULT_SETTINGS, EmbedSettings, Engine
from stflow_graph.preparation.patch_sources import PatchSource, StoredPatches
from stflow_graph.version import __version__

_BLANK_RANGE = 8  # a patch of a smaller range of grey values shows no tissue


@dataclasses.dataclass(frozen=True)
class Embedded:
    """An embedding file: its slide, spots, blank patches, and whether it was up to date."""

    slide: str
    path: Path
    n_spots: int
    n_blank: int
    up_to_date: bool


def embed_files(
    jobs: Sequence[tuple[Path, Path]],
    encoder: Encoder,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[Embedded], None] | None = None,
    share: Share | None = None,
) -> list[Embedded]:
    """Embed patch files, each to its own path; one that fails does not stop the others.

    Args:
        jobs: each patch file and its embedding file.
        encoder: the patch encoder.
        settings: batch size, device, precision, workers, engine.
        overwrite: replace existing targets.
        progress: called with (slide, spots done, spots in all).
        report: called after every slide.
        share: of a part of an array's jobs, or of a rank; None: all files.

    Raises:
        BadInput: the only file cannot be used, or a target is no place for a file.
        SomeFailed: some of several files failed; the others are written.
    """
    for _, target in jobs:
        check_output_file(target)
    sources = [source for source, _ in jobs]  # of all parts, which have one engine
    engine = Engine(encoder, settings, lambda: sum(map(_count, sources)))
    with patch_readers(settings.workers) as pool:
        embed = partial(
            embed_file, overwrite=overwrite, progress=progress, pool=pool, engine=engine
        )
        return attempt_shared(
            jobs,
            lambda job: embed(*job, encoder, settings),
            name=lambda job: job[0].stem,
            n_bytes=lambda job: size_of(job[0]),
            key=lambda job: str(job[1]),  # slides of two data sets may have one name
            share=share,
            report=report,
        )


def embed_file(
    source: str | Path,
    target: str | Path,
    encoder: Encoder,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    pool: Executor | None = None,
    engine: Engine | None = None,
) -> Embedded:
    """Embed one patch file; see :func:`embed_patches`.

    Raises:
        BadInput: the patches cannot be used, were replaced meanwhile, or the target holds other
            embeddings.
        OutOfMemory: a worker died.
    """
    source = Path(source)
    with unchanged(source) as version, open_patches(source) as patches:
        placed = patch_centres(patches)
        stored = StoredPatches(
            source,
            patches.barcodes,
            placed.coords,
            placed.convention,
            patches.um_per_px,
            patches.size_level0,
            {"patches_sha256": version.sha256(source)},
        )
        return embed_patches(
            stored,
            target,
            encoder,
            settings,
            overwrite=overwrite,
            progress=progress,
            pool=pool,
            engine=engine,
            check=version.check,
        )


def embed_patches(
    source: PatchSource,
    target: str | Path,
    encoder: Encoder,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    pool: Executor | None = None,
    engine: Engine | None = None,
    check: Callable[[], None] = lambda: None,
) -> Embedded:
    """Embed the patches of one slide, batch by batch.

    A target made from the same patches with the same weights is kept. Embeddings do not depend on
    the workers, nor on the batch size beyond rounding, and are stored as float32 with the centres
    of the patches, see ``data.coordinates``.

    Args:
        source: the patches.
        target: the embedding file.
        encoder: the patch encoder.
        settings: batch size, device, precision, workers, engine.
        overwrite: replace an existing target.
        progress: called with (slide, spots done, spots in all).
        pool: reads the batches, ``settings.workers`` ahead; None makes one.
        engine: computes the embeddings; None makes one of the encoder.
        check: called when all patches are read; what it raises keeps the file from being written.

    Raises:
        BadInput: the patches cannot be used, or the target holds other embeddings.
        OutOfMemory: a worker died.
    """
    target, dtype, n = Path(target), settings.dtype(), len(source.barcodes)
    attrs = {
        "encoder": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        **source.hashes,
        "precision": "fp32" if dtype is None else str(dtype).removeprefix("torch."),
        "um_per_px": source.um_per_px,
        "convention": source.convention,
        "patch_size_level0": source.edge,
        "version": __version__,
    }
    if target.exists() and not overwrite:
        blank = _check_current(target, attrs, [*source.hashes])
        return Embedded(source.slide, target, n, blank, True)
    report = None if progress is None else partial(progress, source.slide)
    readers = contextlib.nullcontext(pool) if pool else patch_readers(settings.workers)
    engine = engine or Engine(encoder, settings, lambda: n)
    with (
        readers as reader,
        write_embeddings(target, source.barcodes, source.coords, encoder.width, attrs) as writer,
    ):
        n_blank, stain = 0, StainMeter()
        batches = _batches(source, n, settings, reader)
        for x, blank in _encode(batches, n, engine, report, stain):
            writer.append(x)
            n_blank += blank
        writer.attrs.update(n_blank=n_blank, engine=engine.name)
        writer.attrs["stain"] = NO_STAIN if stain.shares is None else stain.shares
        check()
    return Embedded(source.slide, target, n, n_blank, False)


def embed_slide(
    slide: Slide,
    encoder: Encoder,
    settings: EmbedSettings = DEFAULT_SETTINGS,
    *,
    progress: Progress | None = None,
) -> Slide:
    """Return a slide with the embeddings of its patches, as :func:`embed_file` would write them.

    Raises:
        BadInput: the slide has no patches, or they cannot be used.
    """
    patches, rows, stain = slide.patches, np.arange(len(slide)), StainMeter()
    report = None if progress is None else partial(progress, slide.name)
    if patches is None:
        fix = "Slide.from_hest reads a patch file, Slide.from_anndata takes patches="
        raise BadInput(slide.file or slide.name, "patches", unquoted("none"), "patches", fix)
    if isinstance(patches, np.ndarray):
        if patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8:
            found = unquoted(f"{patches.shape} {patches.dtype}")
            raise BadInput(slide.file, "patches", found, "(N, height, width, 3) uint8")
        size = settings.batch_size
        parts = (patches[start : start + size] for start in range(0, len(patches), size))
        engine = Engine(encoder, settings, lambda: len(patches))
        encoded = list(_encode(parts, len(patches), engine, report, stain))
    else:
        with (
            unchanged(patches),
            open_patches(patches) as file,
            patch_readers(settings.workers) as pool,
        ):
            rows, n = rows_of(slide.barcodes, file.barcodes, patches), len(file)
            stored = StoredPatches(patches, file.barcodes, file.coords)
            batches = _batches(stored, n, settings, pool)
            engine = Engine(encoder, settings, lambda: n)
            encoded = list(_encode(batches, n, engine, report, stain))
    x = np.concatenate([x for x, _ in encoded])[rows]
    shares = NO_STAIN if stain.shares is None else stain.shares
    return dataclasses.replace(slide, x=x, encoder=encoder.name, stain=shares)


def _check_current(target: Path, attrs: Mapping[str, object], hashes: Sequence[str]) -> int:
    """Return the blank patches of an existing target, which must have these attributes."""
    stored = read_attrs(target)
    for key in ("encoder", "weights_sha256", *hashes, "precision", "convention"):
        if stored.get(key) != attrs[key] or stored.get("format") != FORMAT:
            fix = "--overwrite to embed anew, or another output"
            raise BadInput(target, key, stored.get(key), f"{attrs[key]!r}", fix)
    return int(stored.get("n_blank", 0))


def _count(source: Path) -> int:
    """Return the number of patches in a file, 0 if it cannot be read, reported on embedding it."""
    with contextlib.suppress(Exception), open_patches(source) as patches:
        return len(patches)
    return 0


def _encode(
    batches: Iterable[np.ndarray],
    n: int,
    engine: Engine,
    report: Callable[[int, int], None] | None,
    stain: StainMeter,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the embeddings ``[B, F]`` of each batch and how many of its patches are blank."""
    done = 0
    with freed_memory_kept():
        for images in batches:
            flat = images.reshape(len(images), -1)
            n_blank = int((np.ptp(flat, axis=1) < _BLANK_RANGE).sum())
            stain.add(images)
            yield engine(images), n_blank
            done += len(images)
            if report:
                report(done, n)


@contextlib.contextmanager
def patch_readers(workers: int) -> Iterator[Executor]:
    """Yield a pool that reads patches: processes, or one thread if ``workers`` is 0."""
    pool: Executor = ThreadPoolExecutor(1)
    if workers:  # neither CUDA nor HDF5 survives a fork
        context = multiprocessing.get_context("spawn")
        # a terminal interrupts them too; the command answers for all
        ignore = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
        pool = ProcessPoolExecutor(workers, context, *ignore)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(
    source: PatchSource, n: int, settings: EmbedSettings, pool: Executor
) -> Iterator[np.ndarray]:
    """Yield ``[B, P, P, 3]`` uint8 in order; more are read while the caller works on one."""
    size = settings.batch_size
    jobs = (pool.submit(source.reading(start, min(start + size, n))) for start in range(0, n, size))
    try:
        yield from results_ahead(jobs, max(1, settings.workers))
    except BrokenProcessPool:
        raise OutOfMemory(
            f"{source.file}: a worker that reads patches died, most likely out of memory. "
            "Fix: fewer --workers or a smaller --batch-size"
        ) from None
