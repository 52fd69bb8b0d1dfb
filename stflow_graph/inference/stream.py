"""A slide of any size through a trained denoiser: embeddings in blocks, expression in blocks.

What is in memory grows with the spots, not with spots times embedding channels or many genes: the
graph, and of each member of the denoiser the states of the spots after every block, or where that
is less the mean of what they say. Embeddings that are not kept are read once for their mean and
deviation and once for each member.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from stflow_graph.config import Config
from stflow_graph.data.normalise import Moments, Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import OutOfMemory
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph.tiles import CACHE_SIZED, SpatialTiles, Tiles
from stflow_graph.inference.predict import as_expression, draw_samples
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.io.predictions import Block, chunk_rows
from stflow_graph.models.build import build_graph
from stflow_graph.nn.denoiser import GraphDenoiser
from stflow_graph.nn.ensemble import DenoiserEnsemble
from stflow_graph.nn.spot_flow import Condition

logger = logging.getLogger(__name__)

_KEEP_BYTES = 2**29  # embeddings up to here are read once and kept
_TILE_BYTES = 2**29  # what a tile's estimates of expression may take
_BLOCK_BYTES = 2**27  # what a block of predictions may take
_SMALLEST_TILE = 64
_DECODED_SPOTS = 2**15  # spots whose states become expression at a time


def can_stream(model: nn.Module) -> bool:
    """Return whether a denoiser can predict in blocks.

    It must run its graph once a slide, and its edges must come from positions alone.
    """
    return all(
        isinstance(member, GraphDenoiser) and member.conditions and not member.similarity_edges
        for member in _ensemble(model).members
    )


@torch.inference_mode()
def stream(
    model: nn.Module,
    source: EmbeddingFile | Slide,
    slide: str,
    config: Config,
    normalisation: Normalisation,
    device: torch.device,
    *,
    n_samples: int = 1,
    seed: int = 0,
    tile_size: int | None = None,
) -> Iterator[Block]:
    """Predict a slide's expression in blocks of rows, equal to ``predict`` on the whole slide.

    Args:
        model: a denoiser for which :func:`can_stream` holds, in eval mode, on the device.
        source: the slide's embeddings, on disk or in memory.
        slide: the slide's name, for the noise.
        config: graph, prior, sampler and number of steps.
        normalisation: scaling of input and output.
        device: where to compute.
        n_samples: S; of 1 only the mean is given.
        seed: of the noise.
        tile_size: spots that the graph works on at a time; None chooses it by memory. Where
            memory does not suffice all the same it is halved, with a warning.

    Raises:
        BadInput: embeddings that cannot be read or are not finite.
        OutOfMemory: tiles of 64 spots do not fit either.
    """
    reader = _Reader(source, normalisation, device)
    ensemble = _ensemble(model)
    members = cast("list[GraphDenoiser]", list(ensemble.members))
    said = _Said(ensemble, drawn=n_samples > 1)
    tiles: Tiles | None = None
    tile_size = tile_size or _automatic_tile_size(members[0])
    while said.n_members < len(members):
        try:
            if tiles is None:
                tiles = _cut(source.coords, config, device, tile_size)
            for member in members[said.n_members :]:
                # what was projected is gone before the blocks begin
                gathered = member.gather(_project(member, reader), tiles)
                said.add(member, member.encode(gathered, tiles))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            tile_size, tiles = _halved(tile_size, slide, error), None
    del tiles, reader
    yield from _predict_blocks(
        ensemble, said, slide, source.barcodes, config, normalisation, n_samples, seed
    )


def _ensemble(model: nn.Module) -> DenoiserEnsemble:
    """Return the denoiser as an ensemble, of one if it is none."""
    return model if isinstance(model, DenoiserEnsemble) else DenoiserEnsemble([model])


class _Said:
    """What the members say of all spots, in whichever form takes less memory.

    That is the code of each (``GraphDenoiser.encode``), or the mean of their expression and, if
    samples will be drawn, the states that the flow of each starts from.

    Args:
        ensemble: the members.
        drawn: whether samples will be drawn.
    """

    def __init__(self, ensemble: DenoiserEnsemble, *, drawn: bool) -> None:
        self.ensemble, self.drawn = ensemble, drawn
        self._codes: list[Tensor] = []
        self._total: Tensor | None = None
        self._states: list[Tensor] = []

    @property
    def n_members(self) -> int:
        """Members that have spoken."""
        return len(self._codes) + len(self._states)

    def add(self, member: GraphDenoiser, code: Tensor) -> None:
        """Take what the next member says: its code ``[N, L · C + rank]``."""
        n_spots = code.size(0)
        n_members, channels = len(self.ensemble.members), member.embed_x.out_features
        if n_members * code.size(1) <= member.n_genes + self.drawn * n_members * channels:
            self._codes.append(code)
        else:
            mean = code.new_empty(n_spots, member.n_genes)
            states = code.new_empty(n_spots if self.drawn else 0, channels)
            for start in range(0, n_spots, _DECODED_SPOTS):
                rows = slice(start, start + _DECODED_SPOTS)
                found = member.decode(code[rows])
                mean[rows] = found.mean
                if self.drawn:
                    assert isinstance(found.states, Tensor)
                    states[rows] = found.states
            # taken when all is there: where memory gave out on the way the member comes again
            self._total = mean if self._total is None else self._total.add_(mean)
            self._states.append(states)

    def condition(self, rows: slice) -> Condition:
        """Return what all members say of some spots."""
        if self._total is None:
            pairs = zip(self.ensemble.members, self._codes, strict=True)
            decoded = [cast(GraphDenoiser, member).decode(code[rows]) for member, code in pairs]
            return self.ensemble.join(decoded)
        mean = self._total[rows] / self.n_members
        return Condition(mean, [Condition(mean, states[rows]) for states in self._states])


class _Reader:
    """A slide's scaled embeddings in blocks on a device, as often as wanted."""

    def __init__(
        self, source: EmbeddingFile | Slide, normalisation: Normalisation, device: torch.device
    ) -> None:
        self.source, self.device = source, device
        self._kept: list[tuple[slice, np.ndarray]] | None = None
        if 4 * len(source) * source.width <= _KEEP_BYTES:
            self._kept = list(source.blocks())
        moments = Moments()
        for _, x in self._raw():
            moments.add(x)
        mean, factor = normalisation.scaling(moments)
        self.mean, self.factor = torch.from_numpy(mean), torch.from_numpy(factor)

    def _raw(self) -> Iterator[tuple[slice, np.ndarray]]:
        return iter(self._kept) if self._kept is not None else _ahead(self.source.blocks())

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Give ``x [n, F]`` of some rows, block by block."""
        for rows, raw in self._raw():
            x = torch.from_numpy(raw)
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            yield rows, (x - self.mean.to(x.device)).mul_(self.factor.to(x.device))


def _ahead(
    blocks: Iterator[tuple[slice, np.ndarray]],
) -> Iterator[tuple[slice, np.ndarray]]:
    """Give the blocks while the next one is being read."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block


def _project(member: GraphDenoiser, reader: _Reader) -> Tensor:
    projected: Tensor | None = None
    for rows, x in reader.blocks():
        part = member.project(x)
        if projected is None:
            projected = part.new_empty(len(reader.source), part.size(1))
        projected[rows] = part
    assert projected is not None
    return projected


def _cut(coords: np.ndarray, config: Config, device: torch.device, tile_size: int) -> Tiles:
    data = Data(pos=torch.from_numpy(coords).to(device), num_nodes=len(coords))
    tiles: Tiles = SpatialTiles(tile_size)(build_graph(config)(data)).tiles
    return tiles


def _automatic_tile_size(member: GraphDenoiser) -> int:
    device = next(member.parameters()).device
    per_gene = 16 * member.n_genes  # a few copies of a spot's estimate
    if device.type != "cuda":
        return max(_SMALLEST_TILE, min(CACHE_SIZED, _TILE_BYTES // per_gene))
    free, _ = torch.cuda.mem_get_info(device)
    per_edge = 40 * member.embed_x.out_features  # ten numbers a channel
    return max(_SMALLEST_TILE, int(free / 3) // (per_gene + 12 * per_edge))


def _is_out_of_memory(error: RuntimeError) -> bool:
    # on the CPU torch raises a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _halved(tile_size: int, slide: str, error: RuntimeError) -> int:
    if tile_size <= _SMALLEST_TILE:
        raise OutOfMemory(
            f"{slide}: out of memory with tiles of {tile_size} spots. Fix: a machine with more "
            "memory, or fewer members (train.members)"
        ) from error
    logger.warning(
        "%s: out of memory with tiles of %d spots: going on with %d",
        slide,
        tile_size,
        tile_size // 2,
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(_SMALLEST_TILE, tile_size // 2)


def _predict_blocks(
    ensemble: DenoiserEnsemble,
    said: _Said,
    slide: str,
    barcodes: Sequence[str],
    config: Config,
    normalisation: Normalisation,
    n_samples: int,
    seed: int,
) -> Iterator[Block]:
    n_genes = len(normalisation.y_mean)
    drawn, chunk = n_samples if n_samples > 1 else 0, chunk_rows(n_genes)
    most = _BLOCK_BYTES // (4 * n_genes * (drawn + len(ensemble.members) + 8))
    n_rows = max(chunk, most // chunk * chunk)
    for start in range(0, len(barcodes), n_rows):
        rows = slice(start, min(start + n_rows, len(barcodes)))
        condition = said.condition(rows)
        samples = None
        if drawn:
            keys = spot_keys(slide, barcodes[rows]).to(condition.mean.device)
            alone = Data(num_nodes=len(keys))
            flows = ensemble.flows(condition)
            samples = draw_samples(flows, keys, alone, config, normalisation, drawn, seed)
        yield Block(rows, as_expression(condition.mean, normalisation), samples)
