"""A trained fold's result, and the history of its training, on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.io.sealed_json import read_sealed, write_sealed
from stflow_graph.stats.metrics import none_if_nan
from stflow_graph.training.loop import EpochRecord

FORMAT = "stflow_graph.fold/3"
PROVENANCE_FORMAT = "stflow_graph.provenance/1"
# formats of before these files had a checksum
_UNSEALED = ("stflow_graph.fold/1", "stflow_graph.fold/2", None)


@dataclasses.dataclass(frozen=True)
class FoldResult:
    """A trained fold.

    Attributes:
        dataset: the data set's name.
        fold: the split's number; None of all slides, none of them tested.
        folder: where its checkpoint is.
        best: the epoch that each member chose on the slides it held out.
        validation_pearson: PCC, mean over genes and training slides, of each slide's prediction by
            the member that held it out.
        genes: G names.
        pearson: ``[G]`` PCC over the spots of all test slides, as HEST-bench scores a fold; NaN
            for constant genes, and without test slides.
        test_pearson: the same for each test slide alone.
        up_to_date: whether there was nothing left to do.
        protocol: what was measured, see ``data.protocol``.
    """

    dataset: str
    fold: int | None
    folder: Path
    best: list[EpochRecord]
    validation_pearson: float
    genes: list[str]
    pearson: np.ndarray
    test_pearson: dict[str, np.ndarray]
    up_to_date: bool
    protocol: str

    def save(self, *, inputs: Mapping[str, str], epochs: int) -> None:
        """Write ``result.json`` into the fold's folder; null stands for NaN.

        Args:
            inputs: hashes of the files that the result depends on.
            epochs: maximum number of epochs that training was allowed.
        """
        content = {
            "protocol": self.protocol,
            "best": [dataclasses.asdict(record) for record in self.best],
            "validation_pearson": none_if_nan(self.validation_pearson),
            "genes": self.genes,
            "pearson": _nullable(self.pearson),
            "test_pearson": {k: _nullable(v) for k, v in self.test_pearson.items()},
            "inputs": dict(inputs),
            "epochs": epochs,
        }
        write_sealed(self.folder / "result.json", FORMAT, content)

    @classmethod
    def from_json(
        cls, dataset: str, fold: int | None, folder: Path, content: Mapping[str, Any]
    ) -> FoldResult:
        """Return a complete fold's result from the content of ``result.json``."""
        return cls(
            dataset,
            fold,
            folder,
            [EpochRecord(**record) for record in content["best"]],
            float(_array([content["validation_pearson"]])[0]),
            content["genes"],
            _array(content["pearson"]),
            {slide: _array(values) for slide, values in content["test_pearson"].items()},
            True,
            content["protocol"],
        )


def read_result(file: Path) -> dict[str, Any]:
    """Return the content of ``result.json``.

    Raises:
        BadInput: it is not JSON, or was changed.
    """
    return read_sealed(file, _UNSEALED, "remove it to finish this fold again")


def write_provenance(file: Path, content: Mapping[str, Any]) -> None:
    """Write ``provenance.json``, from when on what is in a fold's folder has these inputs."""
    write_sealed(file, PROVENANCE_FORMAT, content)


def read_provenance(file: Path) -> dict[str, Any]:
    """Return the content of ``provenance.json``.

    Raises:
        BadInput: it is not JSON, or was changed.
    """
    return read_sealed(file, (None,), "remove this fold's folder to train it anew")


def history_csv(histories: Sequence[Sequence[EpochRecord]]) -> str:
    """Return the epochs of all members as a table, a row each."""
    names = [field.name for field in dataclasses.fields(EpochRecord)]
    rows = [
        ",".join([str(member), *(f"{getattr(record, name):.6g}" for name in names)])
        for member, history in enumerate(histories)
        for record in history
    ]
    return "\n".join([",".join(["member", *names]), *rows]) + "\n"


def _nullable(values: np.ndarray) -> list[float | None]:
    return [none_if_nan(value) for value in values]


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)
