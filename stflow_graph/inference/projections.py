"""What networks read of a slide's embeddings, projected for several of them in one pass."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stflow_graph.data.normalise import Moments, Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.flow.field import averaged_columns
from stflow_graph.graph.arrays import IN_MEMORY, Arrays
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.models.precision import computing_in
from stflow_graph.nn.encoder import GraphEncoder

_KEEP_BYTES = 2**29  # embeddings up to this size are kept where they are read several times
_PROJECTED_BYTES = 2**30  # budget for projections on a CPU
_IN_FILES = 2**33  # and for those in files
_SHARE = 0.25  # of a GPU's free memory for them


@dataclasses.dataclass(frozen=True, eq=False)
class Projected:
    """Some columns of the projections at one distance.

    Attributes:
        array: ``[N, C]``, before its correction.
        offset: ``[C]``, to be added before the scale; None: nothing is to be corrected.
        scale: of the corrected values.
    """

    array: Tensor
    offset: Tensor | None
    scale: float

    def of(self, rows: Tensor) -> Tensor:
        """Return the projections of some rows, ``[n, C]``."""
        values = self.array[rows]
        if self.offset is not None:
            for part in values.split(4096):  # parts that a cache holds
                part.add_(self.offset).mul_(self.scale)
        return values


# columns of a network's first layer -> their projections at each distance
Columns = tuple[slice, list[Projected]]


class Projections:
    r"""The projections (``GraphEncoder.project``) of a slide's scaled embeddings.

    They are made for as many encoders in one pass over the embeddings as memory has room for. The
    scaling of a slide by its own statistics is known only after the first pass: where it is a shift
    m and one factor s, :math:`W (x - m) s = s (W (x - c) + W (c - m))` is corrected afterwards, c
    the mean of the first block.

    Args:
        source: the slide's embeddings, on disk or in memory.
        encoders: the networks, on one device.
        normalisation: scaling of the embeddings.
        precision: of the projection, see ``models.precision``; the results are float32.
        arrays: where the results are.
    """

    def __init__(
        self,
        source: EmbeddingFile | Slide,
        encoders: Sequence[GraphEncoder],
        normalisation: Normalisation,
        precision: str,
        *,
        arrays: Arrays = IN_MEMORY,
    ) -> None:
        self._source, self._normalisation, self._precision = source, normalisation, precision
        self._arrays = arrays
        self._weights = [encoder.project_weight for encoder in encoders]
        self._n_distances = 1 + len(encoders[0].hops)
        width = self._weights[0].size(0) // self._n_distances
        self._columns = averaged_columns(width, len(source))
        self.device = self._weights[0].device
        self._moments: Moments | None = None
        self._kept: list[tuple[slice, np.ndarray]] | None = None
        self._made: dict[int, list[Projected]] = {}

    def take(self, i: int) -> list[Columns]:
        """Return the projections of an encoder, some columns at a time; they are not kept here.

        Raises:
            BadInput: embeddings that cannot be read or are not finite.
        """
        if i not in self._made:
            self._made.clear()
            weights = self._weights[i : i + self._n_at_a_time()]
            made = iter(self._pass(weights))
            n_parts = self._n_distances * len(self._columns)
            self._made = {i + k: list(itertools.islice(made, n_parts)) for k in range(len(weights))}
        parts, n_columns = self._made.pop(i), len(self._columns)
        return [(columns, parts[k::n_columns]) for k, columns in enumerate(self._columns)]

    def place(self) -> Tensor:
        """Return the slide's mean embedding ``[F]`` by which a field compares slides."""
        assert self._moments is not None, "nothing has been projected"
        place = self._normalisation.place(self._moments.mean)
        return torch.from_numpy(place).float().to(self.device)

    def _n_at_a_time(self) -> int:
        budget = _PROJECTED_BYTES if self._arrays is IN_MEMORY else _IN_FILES
        if self.device.type == "cuda":
            budget = int(_SHARE * torch.cuda.mem_get_info(self.device)[0])
        return max(1, budget // max(4 * len(self._source) * self._weights[0].size(0), 1))

    def _pass(self, weights: Sequence[Tensor]) -> list[Projected]:
        """Project all embeddings by each weight ``[P, F]``, in one pass if scaling permits.

        Returns:
            Of every weight, every distance and every part of the columns, in this order.
        """
        if self._moments is None and self._normalisation.standardize == "slide":
            moments = Moments()
            for _ in self._raw(again=True, moments=moments):
                pass
            self._moments = moments
        first = Moments() if self._moments is None else None
        corrected = first is not None and self._normalisation.standardize == "center"
        weight = torch.cat(list(weights))
        widths = [columns.stop - columns.start for columns in self._columns]
        widths *= len(weights) * self._n_distances
        growing = [self._arrays.growing(len(self._source)) for _ in widths]
        of_parts, shift = weight.split(widths), None
        for rows, raw in self._raw(again=len(weights) < len(self._weights), moments=first):
            if shift is None:
                if corrected:
                    shift = self._there(raw.mean(axis=0))
                else:
                    mean, factor = self._normalisation.scaling(self._moments or Moments())
                    shift, weight = self._there(mean), weight * self._there(factor)
            x = self._there(raw) - shift
            with computing_in(self._precision, self.device):
                projected = F.linear(x, weight)
            for part, of_block in zip(growing, projected.split(widths, dim=1), strict=True):
                part.put(rows, of_block.float())
        if first is not None:
            self._moments = first
        arrays = [part.whole() for part in growing]
        if not corrected:
            return [Projected(array, None, 1.0) for array in arrays]
        assert shift is not None
        assert self._moments is not None
        mean, factor = self._normalisation.scaling(self._moments)
        offset = shift.cpu().double() - torch.from_numpy(mean).double()  # not all devices have it
        scale = float(factor.max())  # one number for all, 0 of none
        moved = [(of_part.cpu().double() @ offset).float() for of_part in of_parts]
        return [
            Projected(array, shifted.to(array.device), scale)
            for array, shifted in zip(arrays, moved, strict=True)
        ]

    def _there(self, x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _raw(
        self, *, again: bool, moments: Moments | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings, which are kept if they will be read again and are small.

        Args:
            again: whether they will be read again.
            moments: to which they are added.
        """
        small = 4 * len(self._source) * self._source.width <= _KEEP_BYTES
        if self._kept is None and again and small:
            self._kept = list(self._source.blocks())
        if self._kept is not None:
            return _added(iter(self._kept), moments)
        return _prefetch(_added(self._source.blocks(), moments))


def _added(
    blocks: Iterator[tuple[slice, np.ndarray]], moments: Moments | None
) -> Iterator[tuple[slice, np.ndarray]]:
    for rows, x in blocks:
        if moments is not None:
            moments.add(x)
        yield rows, x


def _prefetch(
    blocks: Iterator[tuple[slice, np.ndarray]],
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the blocks while the next one is being read."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = pool.submit(next, blocks, None)
            yield block
