"""What networks read of a slide's embeddings, projected for several of them in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stflow_graph.data.normalise import Moments, Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.models.precision import computing_in
from stflow_graph.nn.encoder import GraphEncoder

_KEEP_BYTES = 2**29  # embeddings up to this size are kept where they are read several times
_PROJECTED_BYTES = 2**30  # budget for projections on a CPU
_SHARE = 0.25  # of a GPU's free memory for them


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
    """

    def __init__(
        self,
        source: EmbeddingFile | Slide,
        encoders: Sequence[GraphEncoder],
        normalisation: Normalisation,
        precision: str,
    ) -> None:
        self._source, self._normalisation, self._precision = source, normalisation, precision
        self._weights = [encoder.project_weight for encoder in encoders]
        self.device = self._weights[0].device
        self._moments: Moments | None = None
        self._kept: list[tuple[slice, np.ndarray]] | None = None
        self._made: dict[int, Tensor] = {}

    def take(self, i: int) -> Tensor:
        """Return the projections ``[N, P]`` of an encoder, which are not kept here.

        Raises:
            BadInput: embeddings that cannot be read or are not finite.
        """
        if i not in self._made:
            self._made.clear()
            self._made = dict(enumerate(self._pass(self._weights[i : i + self._n_at_a_time()]), i))
        return self._made.pop(i)

    def place(self) -> Tensor:
        """Return the slide's mean embedding ``[F]`` by which a field compares slides."""
        assert self._moments is not None, "nothing has been projected"
        place = self._normalisation.place(self._moments.mean)
        return torch.from_numpy(place).float().to(self.device)

    def _n_at_a_time(self) -> int:
        budget = _PROJECTED_BYTES
        if self.device.type == "cuda":
            budget = int(_SHARE * torch.cuda.mem_get_info(self.device)[0])
        return max(1, budget // max(4 * len(self._source) * self._weights[0].size(0), 1))

    def _pass(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Project all embeddings by each weight ``[P, F]``, in one pass if scaling permits."""
        if self._moments is None and self._normalisation.standardize == "slide":
            moments = Moments()
            for _, raw in self._raw(again=True):
                moments.add(raw)
            self._moments = moments
        first = Moments() if self._moments is None else None
        corrected = first is not None and self._normalisation.standardize == "center"
        weight = torch.cat(list(weights))
        made = [w.new_empty(len(self._source), w.size(0)) for w in weights]
        shift: Tensor | None = None
        for rows, raw in self._raw(again=len(weights) < len(self._weights)):
            if first is not None:
                first.add(raw)
            if shift is None:
                if corrected:
                    shift = self._there(raw.mean(axis=0))
                else:
                    mean, factor = self._normalisation.scaling(self._moments or Moments())
                    shift, weight = self._there(mean), weight * self._there(factor)
            x = self._there(raw) - shift
            with computing_in(self._precision, self.device):
                projected = F.linear(x, weight)
            parts = projected.split([part.size(1) for part in made], dim=1)
            for part, of_block in zip(made, parts, strict=True):
                part[rows] = of_block
        if first is not None:
            self._moments = first
        if corrected:
            assert shift is not None
            self._correct(made, weights, shift)
        return made

    def _correct(self, made: Sequence[Tensor], weights: Sequence[Tensor], origin: Tensor) -> None:
        assert self._moments is not None
        mean, factor = self._normalisation.scaling(self._moments)
        offset = origin.cpu().double() - torch.from_numpy(mean).double()  # not all devices have it
        for projected, weight in zip(made, weights, strict=True):
            moved = (weight.cpu().double() @ offset).float().to(projected.device)
            for part in projected.split(4096):  # parts that a cache holds
                part.add_(moved).mul_(float(factor.max()))  # one number for all, 0 of none

    def _there(self, x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _raw(self, *, again: bool) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the embeddings, which are kept if they will be read again and are small."""
        small = 4 * len(self._source) * self._source.width <= _KEEP_BYTES
        if self._kept is None and again and small:
            self._kept = list(self._source.blocks())
        return _prefetch(self._source.blocks()) if self._kept is None else iter(self._kept)


def _prefetch(
    blocks: Iterator[tuple[slice, np.ndarray]],
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the blocks while the next one is being read."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = pool.submit(next, blocks, None)
            yield block
