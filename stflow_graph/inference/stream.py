"""A slide of any size through two-stage denoisers: embeddings in blocks, expression in blocks.

What grows with the spots: the graph, a first layer's projections of the embeddings, and for each
member of the ensemble the states of the spots after every block, or where that is less the mean of
the members' outputs; for samples of a field up to 16 numbers a spot and sample. Of slides of more
than half a million spots it is in files (``inference.scratch``), so that memory hardly grows with
them. Inside, spots stand along a Hilbert curve: whatever the order of the file, what a tile reads
is in few places. Embeddings are projected in as few passes as memory permits, see
``inference.projections``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stflow_graph.config import Config, FlowConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.observed import Observed
from stflow_graph.data.slide import Slide
from stflow_graph.errors import OutOfMemory
from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph.arrays import IN_MEMORY, Arrays
from stflow_graph.graph.hilbert import hilbert_order
from stflow_graph.graph.tiles import CACHE_SIZED, TiledGraph
from stflow_graph.inference.predict import as_expression, draw_samples
from stflow_graph.inference.projections import Projections
from stflow_graph.inference.scratch import ScratchFiles
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.io.freed_memory import freed_memory_kept, give_back_freed_memory
from stflow_graph.io.predictions import Block, chunk_rows
from stflow_graph.models.build import build_slide_graph
from stflow_graph.models.precision import computing_in
from stflow_graph.nn.encoder import GraphEncoder
from stflow_graph.nn.ensemble import flows_about_the_mean
from stflow_graph.nn.evidence import InformedDraws, Measured
from stflow_graph.nn.expression_field import ExpressionField, FieldDraws
from stflow_graph.nn.two_stage import TwoStageDenoiser

logger = logging.getLogger(__name__)

_TILE_BYTES = 2**29  # budget for a tile's estimates of expression
_BLOCK_BYTES = 2**27  # budget for a block of predictions
_MIN_TILE = 64
_EDGES_PER_SPOT = 12  # of 8 neighbours, and those nearly as near
# a CPU's tile has one number of each edge and channel in this: fewer calls, and arrays that memory
# which is kept (``io.freed_memory``) is there for
_EDGE_BYTES = 2**23
_DECODED_SPOTS = 2**15  # spots whose states become expression at a time
_IN_MEMORY = 2**19  # spots of a slide whose arrays are in memory


@torch.inference_mode()
def stream(
    members: Sequence[TwoStageDenoiser],
    source: EmbeddingFile | Slide,
    name: str,
    config: Config,
    flow: FlowConfig,
    normalisation: Normalisation,
    *,
    field: ExpressionField | None = None,
    n_samples: int = 1,
    seed: int = 0,
    tile_size: int | None = None,
    observed: Observed | None = None,
    as_measured: bool = True,
    precision: str = "float32",
    scratch: Path | None = None,
) -> Iterator[Block]:
    """Predict a slide's expression in blocks of rows, equal to ``predict`` on the whole slide.

    Args:
        members: the denoisers of an ensemble, in eval mode, on one device.
        source: the slide's embeddings, on disk or in memory.
        name: the slide's name, for the noise.
        config: the graph.
        flow: prior, sampler and number of steps.
        normalisation: scaling of input and output.
        field: of the residuals, on the members' device; None: samples come from the members' flows.
        n_samples: S; of 1 only the mean is given.
        seed: of the noise.
        tile_size: maximum number of spots of a tile; None chooses it by memory. If memory does not
            suffice it is halved, with a warning.
        observed: what is measured of the slide and informs the field; None: nothing.
        as_measured: whether measured values are given back as they are.
        precision: of the first layer and the blocks; the states after them are float32.
        scratch: folder for a large slide's arrays on a CPU; None: they are in memory.

    Raises:
        BadInput: embeddings that cannot be read or are not finite.
        OutOfMemory: tiles of 64 spots do not fit either.
        StorageFailed: the folder's disk is full.
    """
    device = next(members[0].parameters()).device
    with _arrays(len(source), device, scratch) as arrays:
        encoders = [member.encoder for member in members]
        spots = _SpotOrder.of(source.coords, device)
        projections = Projections(source, encoders, normalisation, precision, arrays=arrays)
        drawn = n_samples > 1
        outputs = _MemberOutputs(
            members, arrays, with_states=drawn and field is None, with_spread=drawn
        )
        graph: TiledGraph | None = None
        tile_size = tile_size or _automatic_tile_size(members[0].encoder, device)
        while outputs.n_done < len(members):
            try:
                if graph is None:
                    graph = _tiled_graph(spots.pos, config, device, tile_size, arrays)
                for encoder in encoders[outputs.n_done :]:
                    i = outputs.n_done
                    outputs.add(
                        encoder, _code(encoder, projections, i, spots.rows, graph, precision)
                    )
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                tile_size, graph = _halved(tile_size, name, error), None
        if field is None or (n_samples == 1 and observed is None):
            del graph, projections
            yield from _predict_blocks(
                outputs, spots, name, source.barcodes, flow, normalisation, n_samples, seed
            )
            return
        assert graph is not None
        place, keys = projections.place(), spot_keys(name, source.barcodes).to(device)
        noise = SlideNoise(keys[spots.rows], name, graph.average, seed)
        del graph, projections
        draws: FieldDraws | InformedDraws
        if observed is None:
            draws = field.draw(noise, place, n_samples, arrays)
        else:
            measured = _measured(observed, outputs, spots, normalisation)
            n_drawn = n_samples if n_samples > 1 else 0
            draws = InformedDraws(
                field, noise, spots.pos, measured, n_drawn, as_measured=as_measured
            )
        yield from _field_blocks(outputs, spots, draws, normalisation)


def _arrays(
    n_spots: int, device: torch.device, scratch: Path | None
) -> contextlib.AbstractContextManager[Arrays]:
    if scratch is None or n_spots <= _IN_MEMORY or device.type != "cpu":
        return contextlib.nullcontext(IN_MEMORY)
    return ScratchFiles(scratch)


@dataclasses.dataclass(frozen=True)
class _SpotOrder:
    """The spots of a slide along a curve.

    Attributes:
        pos: ``[N, 2]`` float64 positions along it.
        rows: ``[N]`` the source's rows along it.
        places: ``[N]`` places on it of the source's rows.
    """

    pos: np.ndarray
    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, coords: np.ndarray, device: torch.device) -> _SpotOrder:
        rows = hilbert_order(coords)
        places = np.empty_like(rows)
        places[rows] = np.arange(len(rows))
        there = (torch.from_numpy(each).to(device) for each in (rows, places))
        return cls(coords[rows], *there)


class _MemberOutputs:
    """Per-member encoder outputs for all spots, in the form that takes less memory.

    That is the code of each (``GraphEncoder.encode``), or the mean of their expression and, if
    samples will be drawn, the states that the flow of each starts from.

    Args:
        members: the denoisers.
        arrays: where outputs are.
        with_states: whether flows will draw samples from states.
        with_spread: whether the standard deviation between the members is wanted.
    """

    def __init__(
        self,
        members: Sequence[TwoStageDenoiser],
        arrays: Arrays,
        *,
        with_states: bool,
        with_spread: bool,
    ) -> None:
        self.members, self.arrays, self.with_states = members, arrays, with_states
        self.with_spread = with_spread and len(members) > 1
        self._codes: list[list[Tensor]] = []
        self._total: Tensor | None = None
        self._squares: Tensor | None = None
        self._states: list[Tensor] = []
        self._n_added = 0

    @property
    def n_done(self) -> int:
        """Number of members whose outputs are here."""
        return len(self._codes) + self._n_added

    def add(self, encoder: GraphEncoder, code: list[Tensor]) -> None:
        """Add the code of the next member, tensors ``[N, ...]``."""
        n_spots, n_members = code[0].size(0), len(self.members)
        width, per_spot = sum(part.size(1) for part in code), encoder.n_genes
        per_spot += self.with_states * n_members * encoder.channels
        if n_members * width <= per_spot + self.with_spread * encoder.n_genes:
            self._codes.append(code)
            return
        total, squares, states = (self.arrays.growing(n_spots) for _ in range(3))
        for start in range(0, n_spots, _DECODED_SPOTS):
            rows = slice(start, start + _DECODED_SPOTS)
            encoding = encoder.decode([part[rows] for part in code])
            before = 0.0 if self._total is None else self._total[rows]
            total.put(rows, encoding.mean + before)
            if self.with_spread:  # sums of squares about the mean (Welford 1962)
                n, mean = self._n_added, encoding.mean
                if self._squares is None or self._total is None:
                    squares.put(rows, torch.zeros_like(mean))
                else:
                    apart = mean - self._total[rows] / n
                    squares.put(rows, self._squares[rows] + apart**2 * (n / (n + 1)))
            if self.with_states:
                states.put(rows, encoding.states)
        # added when complete: if memory gave out on the way, the member is run again
        self._total = total.whole()
        if self.with_spread:
            self._squares = squares.whole()
        self._n_added += 1
        if self.with_states:
            self._states.append(states.whole())

    def of(self, spots: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the members' mean ``[n, G]`` of spots ``[n]``, and the states of each, if any."""
        if self._total is not None:
            return self._total[spots] / self.n_done, [states[spots] for states in self._states]
        pairs = zip(self.members, self._codes, strict=True)
        encodings = [m.encoder.decode([part[spots] for part in code]) for m, code in pairs]
        mean = torch.stack([encoding.mean for encoding in encodings]).mean(0)
        return mean, [encoding.states for encoding in encodings]

    def spread(self, spots: Tensor) -> np.ndarray | None:
        """Return the standard deviation of the members' means ``[n, G]``, None if not wanted."""
        if not self.with_spread:
            return None
        if self._squares is not None:
            return (self._squares[spots] / self.n_done).sqrt().float().cpu().numpy()
        pairs = zip(self.members, self._codes, strict=True)
        means = [m.encoder.decode([part[spots] for part in code]).mean for m, code in pairs]
        return torch.stack(means).std(0, correction=0).float().cpu().numpy()


def _code(
    encoder: GraphEncoder,
    projections: Projections,
    i: int,
    rows: Tensor,
    graph: TiledGraph,
    precision: str,
) -> list[Tensor]:
    """Return the code of the i-th encoder, with as little else in memory as can be."""
    give_back_freed_memory()  # of the graph's parts, and of the member before
    taken, gathered = projections.take(i), []
    with freed_memory_kept():
        for columns, distances in taken:
            furthest_first = (distances.pop().of(rows) for _ in range(len(distances)))
            gathered.append(encoder.gather(furthest_first, graph.average, columns))
            if len(taken) > 1:
                gathered[-1] = graph.arrays.keep(gathered[-1])
    states = _joined(gathered, graph)
    del gathered
    give_back_freed_memory()
    with freed_memory_kept(4 * _EDGE_BYTES), computing_in(precision, projections.device):
        return encoder.encode(states, graph)


def _joined(columns: Sequence[Tensor], graph: TiledGraph) -> Tensor:
    """Return columns ``[N, c]`` side by side."""
    if len(columns) == 1:
        return columns[0]
    joined = graph.arrays.growing(graph.n_spots)
    for start in range(0, graph.n_spots, _DECODED_SPOTS):
        rows = slice(start, start + _DECODED_SPOTS)
        joined.put(rows, torch.cat([part[rows] for part in columns], dim=1))
    return joined.whole()


def _tiled_graph(
    pos: np.ndarray, config: Config, device: torch.device, tile_size: int, arrays: Arrays
) -> TiledGraph:
    edges_of = build_slide_graph(config).edges_of(torch.from_numpy(pos).to(device))
    return TiledGraph.along(len(pos), edges_of, tile_size, arrays, device)


def _automatic_tile_size(encoder: GraphEncoder, device: torch.device) -> int:
    per_gene = 16 * encoder.n_genes  # a few copies of a spot's estimate
    if device.type != "cuda":
        of_edges = _EDGE_BYTES // (4 * _EDGES_PER_SPOT * encoder.channels)
        return max(_MIN_TILE, min(max(CACHE_SIZED, of_edges), _TILE_BYTES // per_gene))
    free, _ = torch.cuda.mem_get_info(device)
    per_edge = 40 * encoder.channels  # ten numbers a channel
    return max(_MIN_TILE, int(free / 3) // (per_gene + _EDGES_PER_SPOT * per_edge))


def _is_out_of_memory(error: RuntimeError) -> bool:
    # on the CPU torch raises a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _halved(tile_size: int, name: str, error: RuntimeError) -> int:
    if tile_size <= _MIN_TILE:
        raise OutOfMemory(
            f"{name}: out of memory with tiles of {tile_size} spots. Fix: a machine with more "
            "memory, or fewer members (train.members)"
        ) from error
    half = max(_MIN_TILE, tile_size // 2)
    logger.warning(
        "%s: out of memory with tiles of %d spots: going on with %d", name, tile_size, half
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return half


def _predict_blocks(
    outputs: _MemberOutputs,
    spots: _SpotOrder,
    name: str,
    barcodes: Sequence[str],
    flow: FlowConfig,
    normalisation: Normalisation,
    n_samples: int,
    seed: int,
) -> Iterator[Block]:
    members, n_drawn = outputs.members, n_samples if n_samples > 1 else 0
    for rows in _row_blocks(len(barcodes), len(normalisation.y_mean), n_drawn + len(members)):
        mean, states = outputs.of(spots.places[rows])
        samples = None
        if n_drawn:
            keys = spot_keys(name, barcodes[rows]).to(mean.device)
            models = flows_about_the_mean(members, mean, states)
            samples = draw_samples(models, keys, flow, normalisation, n_drawn, seed)
        between = outputs.spread(spots.places[rows])
        yield Block(rows, as_expression(mean, normalisation), samples, between)


def _measured(
    observed: Observed, outputs: _MemberOutputs, spots: _SpotOrder, normalisation: Normalisation
) -> Measured:
    at = spots.places[torch.from_numpy(observed.rows).to(spots.places.device)]
    expected = [
        as_expression(outputs.of(part)[0], normalisation) for part in at.split(_DECODED_SPOTS)
    ]
    genes, values, means = (
        torch.from_numpy(x).to(at.device)
        for x in (observed.genes, observed.values, np.concatenate(expected))
    )
    return Measured(at, genes, values, means)


def _field_blocks(
    outputs: _MemberOutputs,
    spots: _SpotOrder,
    draws: FieldDraws | InformedDraws,
    normalisation: Normalisation,
) -> Iterator[Block]:
    n_arrays = len(draws) + len(outputs.members)
    for rows in _row_blocks(len(spots.rows), len(normalisation.y_mean), n_arrays):
        at = spots.places[rows]
        mean, _ = outputs.of(at)
        before = torch.from_numpy(as_expression(mean, normalisation)).to(mean.device)
        expected = draws.expected(before, at).cpu().numpy()
        drawn = [each.cpu().numpy() for each in draws.expression(before, at)]
        yield Block(rows, expected, np.stack(drawn) if drawn else None, outputs.spread(at))


def _row_blocks(n_spots: int, n_genes: int, n_arrays: int) -> Iterator[slice]:
    """Yield the rows of blocks for which so many arrays ``[n, G]`` fit into the budget."""
    chunk = chunk_rows(n_genes)
    max_rows = _BLOCK_BYTES // (4 * n_genes * (n_arrays + 8))
    n_rows = max(chunk, max_rows // chunk * chunk)
    for start in range(0, n_spots, n_rows):
        yield slice(start, min(start + n_rows, n_spots))
