"""Simulated cohorts in HEST-bench layout: H&E-like patches, counts and the truth behind them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from PIL import Image

from stflow_graph.data.genes import write_gene_list
from stflow_graph.data.splits import split_files, write_splits
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.io.atomic import write_json
from stflow_graph.io.expression import TRUE_MEAN, write_expression
from stflow_graph.io.folders import atomic_folder, marked
from stflow_graph.io.outputs import check_output_folder
from stflow_graph.io.patches import write_patches
from stflow_graph.simulation.fields import PATCH, PATCH_UM, PITCH_UM, REGIONS, UM_PER_PX
from stflow_graph.simulation.gene_model import CLASSES, GeneModel, make_gene_model
from stflow_graph.simulation.histology import STAINS, Painter
from stflow_graph.simulation.tissue import RngFor, make_tissue, neighbour_means
from stflow_graph.stats.metrics import mean_of_defined, none_if_nan, pearson_per_gene

FORMAT = "stflow_graph.simulation/1"
GENE_LIST = "var_50genes.json"
DESCRIPTION = "simulation.json"
_COHORT_FOLDER = marked(
    "a simulated cohort",
    DESCRIPTION,
    ("stflow_graph.simulation/",),
    {"patches", "adata", "splits", GENE_LIST, DESCRIPTION},
)
_BATCH = 32
# the key of a generator is (seed, one of these, number, purpose)
_COHORT, _PATIENT, _SLIDE = 0, 1, 2

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class SimulatedSlide:
    """A slide's name, its patient and the fold that tests it."""

    id: str
    patient: str
    test_fold: int


@dataclasses.dataclass(frozen=True)
class SimulatedCohort:
    """A cohort on disk; usable as a path.

    Attributes:
        path: its folder.
        slides: the slides in order.
        n_spots: spots of each slide.
        n_folds: folds of ``splits/``.
        genes: genes by class, including those beyond the gene list.
        noise_ceiling: by class, the mean over genes of the Pearson correlation of the true mean
            with log1p(counts): ``"slide"`` within slides, ``"pooled"`` over all spots; None where
            undefined.
    """

    path: Path
    slides: list[SimulatedSlide]
    n_spots: int
    n_folds: int
    genes: dict[str, list[str]]
    noise_ceiling: dict[str, dict[str, float | None]]

    def __fspath__(self) -> str:
        return str(self.path)


def simulate_cohort(
    out: str | Path,
    *,
    n_slides: int = 6,
    n_spots: int = 400,
    seed: int = 0,
    n_folds: int = 3,
    patch_size: int = PATCH,
    stain: str = "usual",
    first_slide: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SimulatedCohort:
    """Write a cohort: ``patches/``, ``adata/``, ``splits/``, a gene list and ``simulation.json``.

    The same arguments give the same bytes, and a slide does not depend on how many follow it while
    the patients stay the same. The layer ``true_mean`` of each .h5ad is the expected log1p(count)
    given the tissue, the slide's depth and the patient's levels; what is left is noise.

    Args:
        out: the folder to write; it may exist empty.
        n_slides: slides, two per patient if that leaves a patient for each fold, else one.
        n_spots: spots of each slide, on a hexagonal array of 100 µm pitch.
        seed: of everything random.
        n_folds: folds by patient, each slide tested once; at most one per patient.
        patch_size: edge of the stored patches, px; they cover 112 µm, 224 px at level 0.
        stain: ``"usual"`` or ``"other"``, that of another laboratory.
        first_slide: number of the first slide, odd. A cohort of the same seed with other numbers
            has other slides and patients, and the same genes.
        overwrite: replace an existing cohort.
        progress: called with the slide's name, the patches done and all its patches.

    Raises:
        BadInput: a number out of range, or a folder that holds something else.
    """
    out = check_output_folder(out).resolve()
    _check_numbers(out, n_slides, n_spots, seed, n_folds, patch_size, first_slide)
    if stain not in STAINS:
        raise BadInput(out, "stain", stain, " or ".join(STAINS))
    _check_folder(out, overwrite)
    per_patient = 2 if n_slides >= 2 * n_folds else 1
    before = first_slide - 1
    numbers = range(before, before + n_slides)
    patients = [i // per_patient for i in numbers]
    n_folds = min(n_folds, patients[-1] - patients[0] + 1)
    slides = [
        SimulatedSlide(f"S{i + 1:02d}", f"P{patient + 1:02d}", (patient - patients[0]) % n_folds)
        for i, patient in zip(numbers, patients, strict=True)
    ]
    genes = make_gene_model(_rng(seed, _COHORT, 0, "genes"))
    expected, counted = [], []
    with atomic_folder(out, _COHORT_FOLDER) as folder:
        for slide, i, patient in zip(slides, numbers, patients, strict=True):
            level = _rng(seed, _PATIENT, patient, "level").normal(size=len(genes.genes))
            writer = _SlideWriter(slide, n_spots, partial(_rng, seed, _SLIDE, i), stain)
            writer.write_patches(folder / "patches", patch_size, progress)
            written = writer.write_counts(folder / "adata", genes, genes.patient_sd * level)
            expected.append(written[0])
            counted.append(written[1])
        ceiling = _noise_ceiling(genes, expected, counted)
        names, patients_of, tested = zip(*map(dataclasses.astuple, slides), strict=True)
        write_splits(folder / "splits", split_files(names, tested, patients_of))
        write_gene_list(folder / GENE_LIST, genes.modelled)
        description = {
            "format": FORMAT,
            "seed": seed,
            **({} if stain == "usual" else {"stain": stain}),
            "n_spots": n_spots,
            "pitch_um": PITCH_UM,
            "patch_um": PATCH_UM,
            "um_per_px": UM_PER_PX,
            "coupling_range_um": genes.coupling_rings * PITCH_UM,
            "slides": [dataclasses.asdict(slide) for slide in slides],
            "noise_ceiling": ceiling,
            "model": genes.describe(),
        }
        write_json(folder / DESCRIPTION, description)
    by_class = {name: [genes.genes[j] for j in genes.rows(name)] for name in CLASSES}
    return SimulatedCohort(out, slides, n_spots, n_folds, by_class, ceiling)


def _rng(seed: int, kind: int, number: int, purpose: str) -> np.random.Generator:
    key = (kind, number, zlib.crc32(purpose.encode()))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _check_numbers(
    out: Path,
    n_slides: int,
    n_spots: int,
    seed: int,
    n_folds: int,
    patch_size: int,
    first_slide: int,
) -> None:
    for field, value, low, high in (
        ("slides", n_slides, 2, 9999),
        ("spots", n_spots, 1, 20_000),
        ("seed", seed, 0, 2**63 - 1),
        ("folds", n_folds, 2, 9999),
        ("patch size", patch_size, 8, PATCH),
        ("first slide", first_slide, 1, 9999),
    ):
        if not low <= value <= high:
            raise BadInput(out, field, value, f"a whole number from {low} to {high}")


def _check_folder(out: Path, overwrite: bool) -> None:
    if Path.cwd().is_relative_to(out):
        raise BadInput(out, "output", unquoted("the working folder"), "a folder below it")
    present = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if present and not overwrite:
        found = unquoted(f"{count(len(present), 'entry', 'entries')}, such as {present[:3]}")
        raise BadInput(out, "output", found, "an empty or new folder", "add --overwrite")
    _COHORT_FOLDER.check(out)


class _SlideWriter:
    """One slide of the cohort: its tissue and its files."""

    def __init__(self, slide: SimulatedSlide, n_spots: int, rng_for: RngFor, stain: str) -> None:
        self._slide, self._rng_for, self._stain = slide, rng_for, stain
        self._tissue = make_tissue(n_spots, rng_for)
        self._barcodes = [
            f"{slide.id}_{row:03d}x{column:03d}" for row, column in self._tissue.array
        ]

    def write_patches(self, folder: Path, patch_size: int, progress: Progress | None) -> None:
        """Draw and write the patches."""
        centres = self._tissue.centres
        painter = Painter(self._tissue, self._rng_for, self._stain)
        with write_patches(
            folder / f"{self._slide.id}.h5",
            self._barcodes,
            centres,
            size=patch_size,
            size_level0=PATCH,
            um_per_px=UM_PER_PX,
        ) as writer:
            for start in range(0, len(centres), _BATCH):
                corners = (centres[start : start + _BATCH] - PATCH // 2).tolist()
                patches = [painter.draw(x, y, PATCH, PATCH) for x, y in corners]
                writer.append(np.stack([_resized(patch, patch_size) for patch in patches]))
                if progress is not None:
                    progress(self._slide.id, writer.written, len(centres))

    def write_counts(
        self, folder: Path, genes: GeneModel, level: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw and write the counts at the patient's ``level [G]``.

        Returns:
            The expectation of log1p(counts), and log1p(counts), both ``[N, G]``.
        """
        tissue = self._tissue
        nuclei, shares = tissue.spot_nuclei(), tissue.spot_regions()
        features = np.concatenate([shares, tissue.spot_states()], axis=1)
        around = neighbour_means(tissue.centres, features, genes.coupling_rings)
        depth = genes.log_depth(nuclei, self._rng_for("depth"))
        log_rate = genes.log_rate(features, around, level, depth)
        counts = genes.sample(log_rate, self._rng_for("counts"))
        expected = genes.expected(log_rate).astype(np.float32)
        write_expression(
            folder / f"{self._slide.id}.h5ad",
            sp.csr_matrix(counts),
            self._barcodes,
            genes.genes,
            tissue.centres,
            um_per_px=UM_PER_PX,
            obs={
                "array_row": tissue.array[:, 0],
                "array_col": tissue.array[:, 1],
                "in_tissue": np.ones(len(counts), dtype=np.int64),
                "region": np.array(REGIONS, dtype=object)[shares.argmax(axis=1)],
                "n_nuclei": nuclei,
            },
            var={"gene_class": np.array(genes.classes, dtype=object)},
            layers={TRUE_MEAN: expected},
            uns={"patient": self._slide.patient},
        )
        return expected, np.log1p(counts)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if size == len(image):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def _noise_ceiling(
    genes: GeneModel, expected: Sequence[np.ndarray], counted: Sequence[np.ndarray]
) -> dict[str, dict[str, float | None]]:
    """Return by class the correlation that a perfect model of the tissue would reach."""
    within = np.array(list(map(pearson_per_gene, expected, counted)))
    pooled = pearson_per_gene(np.concatenate(expected), np.concatenate(counted))
    return {
        name: {
            kind: none_if_nan(mean_of_defined(values[..., genes.rows(name)]))
            for kind, values in (("slide", within), ("pooled", pooled))
        }
        for name in CLASSES
    }
