"""Whether a slide is one that its model was trained for, measured while its embeddings are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from stflow_graph.stats.training_range import TrainingRange

IN_RANGE, DISTANCE = "in_range", "range_distance"
OBS_COLUMNS: Mapping[str, type[np.generic]] = {IN_RANGE: np.bool_, DISTANCE: np.float32}
_MIN_SHARE = 0.5  # of the spots of a slide that is in range


@dataclasses.dataclass(frozen=True)
class InRange:
    """How far a slide lies from the training slides.

    Attributes:
        share: of its spots that are in range.
        embeddings: whether its embeddings are, by their median distance.
        stain: whether its stain is, None if unknown.
    """

    share: float
    embeddings: bool
    stain: bool | None

    @property
    def slide(self) -> bool:
        """Whether the slide is in range in every respect that is known."""
        return self.embeddings and self.share >= _MIN_SHARE and self.stain is not False

    @classmethod
    def of_record(cls, record: object) -> InRange | None:
        """Return what :meth:`record` gave, None of anything else."""
        if not isinstance(record, Mapping):
            return None
        share, embeddings, stain = (record.get(name) for name in ("share", "embeddings", "stain"))
        if not isinstance(share, int | float) or not isinstance(embeddings, bool):
            return None
        return cls(float(share), embeddings, stain if isinstance(stain, bool) else None)

    def record(self) -> dict[str, Any]:
        """Return it for the provenance of a prediction."""
        return {"slide": self.slide, **dataclasses.asdict(self)}

    def warning(self) -> str:
        """Return why a slide is out of range, "" if it is not."""
        reasons = []
        if not self.embeddings or self.share < _MIN_SHARE:
            reasons.append(
                "its patches differ from the training slides' more than these do among them"
            )
        if self.stain is False:
            reasons.append("its stain has another colour, or there is none")
        return " and ".join(reasons)


class RangeMeter:
    """Takes the distances of a slide's spots as blocks of embeddings are read.

    Args:
        training: of the model.
        n_spots: N.
        stain: of the slide, ``[3]``, None if unknown.
    """

    def __init__(self, training: TrainingRange, n_spots: int, stain: np.ndarray | None) -> None:
        self._training, self._stain = training, stain
        self.distances = np.full(n_spots, np.nan, np.float32)

    def see(self, rows: slice, x: np.ndarray) -> None:
        """Take the embeddings ``[n, F]`` of some rows; those taken before are left as they are."""
        if np.isnan(self.distances[rows]).any():
            self.distances[rows] = self._training.distances(x)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of a prediction's spots."""
        return {IN_RANGE: self.distances <= 1, DISTANCE: self.distances}

    def result(self) -> InRange:
        """Return what all spots say of the slide."""
        return InRange(
            float((self.distances <= 1).mean()),
            self._training.slide_in_range(self.distances),
            self._training.stain_in_range(self._stain),
        )
