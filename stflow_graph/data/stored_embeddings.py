"""Embeddings that stay in their file until they are needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.io.versions import Versions


@dataclasses.dataclass(frozen=True)
class StoredEmbeddings:
    """Some spots' embeddings in a file, which is read anew every time.

    Attributes:
        path: the embedding file.
        shape: ``(N, F)``.
        version: of the file when it was read first.
        rows: ``[N]`` rows of the file; None for all.
    """

    path: Path
    shape: tuple[int, int]
    version: Versions
    rows: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """Return the embeddings, ``[N, F]`` float32.

        Raises:
            BadInput: the file was replaced or changed, or is gone.
        """
        self.version.check()
        with open_embeddings(self.path) as source:
            x = source.read()
        return x if self.rows is None else x[self.rows]

    def take(self, rows: np.ndarray) -> StoredEmbeddings:
        """Return those of some of the spots, in this order."""
        of_file = rows if self.rows is None else self.rows[rows]
        return dataclasses.replace(self, shape=(len(rows), self.shape[1]), rows=of_file)


class Embeddings:
    """The attribute of a slide's embeddings: an array, also where they stay in their file."""

    def __get__(self, slide: Any, owner: type | None = None) -> np.ndarray:
        """Return the embeddings, ``[N, F]``; from their file if they are not in memory."""
        kept = slide.__dict__["_x"]
        x: np.ndarray = kept.read() if isinstance(kept, StoredEmbeddings) else kept
        return x

    def __set__(self, slide: Any, x: np.ndarray | StoredEmbeddings) -> None:
        """Keep an array, or the place of one."""
        slide.__dict__["_x"] = x
