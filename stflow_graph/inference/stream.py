"""A slide of any size through two-stage denoisers: embeddings in blocks, expression in blocks.

Memory grows with the spots, not with spots times embedding channels or many genes: the graph, and
for each member of the ensemble the states of the spots after every block, or where that is less
the mean of the members' outputs; for samples of a field up to 16 numbers a spot and sample.
Embeddings are projected in as few passes as memory permits, see ``inference.projections``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from stflow_graph.config import Config, FlowConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.observed import Observed
from stflow_graph.data.slide import Slide
from stflow_graph.errors import OutOfMemory
from stflow_graph.flow.field import SlideNoise
from stflow_graph.flow.noise import spot_keys
from stflow_graph.graph.tiles import CACHE_SIZED, TiledGraph
from stflow_graph.inference.predict import as_expression, draw_samples
from stflow_graph.inference.projections import Projections
from stflow_graph.io.embeddings import EmbeddingFile
from stflow_graph.io.freed_memory import freed_memory_kept, give_back_freed_memory
from stflow_graph.io.predictions import Block, chunk_rows
from stflow_graph.models.build import build_graph
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

    Raises:
        BadInput: embeddings that cannot be read or are not finite.
        OutOfMemory: tiles of 64 spots do not fit either.
    """
    device = next(members[0].parameters()).device
    encoders = [member.encoder for member in members]
    projections = Projections(source, encoders, normalisation, precision)
    outputs = _MemberOutputs(members, with_states=n_samples > 1 and field is None)
    graph: TiledGraph | None = None
    tile_size = tile_size or _automatic_tile_size(members[0].encoder, device)
    while outputs.n_done < len(members):
        try:
            if graph is None:
                graph = _tiled_graph(source.coords, config, device, tile_size)
            for encoder in encoders[outputs.n_done :]:
                outputs.add(encoder, _code(encoder, projections, outputs.n_done, graph, precision))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            tile_size, graph = _halved(tile_size, name, error), None
    if field is None or (n_samples == 1 and observed is None):
        del graph, projections
        yield from _predict_blocks(
            outputs, name, source.barcodes, flow, normalisation, n_samples, seed
        )
        return
    assert graph is not None
    place = projections.place()
    noise = SlideNoise(spot_keys(name, source.barcodes).to(device), name, graph.average, seed)
    del graph, projections
    draws: FieldDraws | InformedDraws
    if observed is None:
        draws = field.draw(noise, place, n_samples)
    else:
        measured = _measured(observed, outputs, normalisation, device)
        n_drawn = n_samples if n_samples > 1 else 0
        draws = InformedDraws(
            field, noise, source.coords, measured, n_drawn, as_measured=as_measured
        )
    yield from _field_blocks(outputs, draws, normalisation)


class _MemberOutputs:
    """Per-member encoder outputs for all spots, in the form that takes less memory.

    That is the code of each (``GraphEncoder.encode``), or the mean of their expression and, if
    samples will be drawn, the states that the flow of each starts from.

    Args:
        members: the denoisers.
        with_states: whether samples will be drawn.
    """

    def __init__(self, members: Sequence[TwoStageDenoiser], *, with_states: bool) -> None:
        self.members, self.with_states = members, with_states
        self._codes: list[list[Tensor]] = []
        self._total: Tensor | None = None
        self._states: list[Tensor] = []

    @property
    def n_done(self) -> int:
        """Number of members whose outputs are here."""
        return len(self._codes) + len(self._states)

    def add(self, encoder: GraphEncoder, code: list[Tensor]) -> None:
        """Add the code of the next member, tensors ``[N, ...]``."""
        n_spots, n_members = code[0].size(0), len(self.members)
        width = sum(part.size(1) for part in code)
        if n_members * width <= encoder.n_genes + self.with_states * n_members * encoder.channels:
            self._codes.append(code)
            return
        mean = code[0].new_empty(n_spots, encoder.n_genes)
        states = code[0].new_empty(n_spots if self.with_states else 0, encoder.channels)
        for start in range(0, n_spots, _DECODED_SPOTS):
            rows = slice(start, start + _DECODED_SPOTS)
            encoding = encoder.decode([part[rows] for part in code])
            mean[rows] = encoding.mean
            if self.with_states:
                states[rows] = encoding.states
        # added when complete: if memory gave out on the way, the member is run again
        self._total = mean if self._total is None else self._total.add_(mean)
        self._states.append(states)

    def of(self, rows: slice) -> tuple[Tensor, list[Tensor]]:
        """Return the members' mean ``[n, G]`` for some spots, and the states of each."""
        if self._total is not None:
            return self._total[rows] / self.n_done, [states[rows] for states in self._states]
        pairs = zip(self.members, self._codes, strict=True)
        encodings = [m.encoder.decode([part[rows] for part in code]) for m, code in pairs]
        mean = torch.stack([encoding.mean for encoding in encodings]).mean(0)
        return mean, [encoding.states for encoding in encodings]

    def mean_of(self, rows: Tensor) -> Tensor:
        """Return the members' mean ``[n, G]`` for some spots by their numbers."""
        if self._total is not None:
            return self._total[rows] / self.n_done
        pairs = zip(self.members, self._codes, strict=True)
        means = [m.encoder.decode([part[rows] for part in code]).mean for m, code in pairs]
        return torch.stack(means).mean(0)


def _code(
    encoder: GraphEncoder, projections: Projections, i: int, graph: TiledGraph, precision: str
) -> list[Tensor]:
    """Return the code of the i-th encoder, with as little else in memory as can be."""
    give_back_freed_memory()  # of the graph's parts, and of the member before
    gathered = encoder.gather(projections.take(i), graph)  # projections end with this call
    give_back_freed_memory()
    with freed_memory_kept(4 * _EDGE_BYTES), computing_in(precision, projections.device):
        return encoder.encode(gathered, graph)


def _tiled_graph(
    coords: np.ndarray, config: Config, device: torch.device, tile_size: int
) -> TiledGraph:
    data = Data(pos=torch.from_numpy(coords).to(device), num_nodes=len(coords))
    return TiledGraph.of(build_graph(config)(data), tile_size)


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
    name: str,
    barcodes: Sequence[str],
    flow: FlowConfig,
    normalisation: Normalisation,
    n_samples: int,
    seed: int,
) -> Iterator[Block]:
    members, n_drawn = outputs.members, n_samples if n_samples > 1 else 0
    for rows in _row_blocks(len(barcodes), len(normalisation.y_mean), n_drawn + len(members)):
        mean, states = outputs.of(rows)
        samples = None
        if n_drawn:
            keys = spot_keys(name, barcodes[rows]).to(mean.device)
            models = flows_about_the_mean(members, mean, states)
            samples = draw_samples(models, keys, flow, normalisation, n_drawn, seed)
        yield Block(rows, as_expression(mean, normalisation), samples)


def _measured(
    observed: Observed, outputs: _MemberOutputs, normalisation: Normalisation, device: torch.device
) -> Measured:
    rows = torch.from_numpy(observed.rows).to(device)
    expected = [
        as_expression(outputs.mean_of(part), normalisation) for part in rows.split(_DECODED_SPOTS)
    ]
    genes, values, means = (
        torch.from_numpy(x).to(device)
        for x in (observed.genes, observed.values, np.concatenate(expected))
    )
    return Measured(rows, genes, values, means)


def _field_blocks(
    outputs: _MemberOutputs, draws: FieldDraws | InformedDraws, normalisation: Normalisation
) -> Iterator[Block]:
    n_arrays = len(draws) + len(outputs.members)
    for rows in _row_blocks(len(draws.noise.keys), len(normalisation.y_mean), n_arrays):
        mean, _ = outputs.of(rows)
        before = torch.from_numpy(as_expression(mean, normalisation)).to(mean.device)
        expected = draws.expected(before, rows).cpu().numpy()
        drawn = [each.cpu().numpy() for each in draws.expression(before, rows)]
        yield Block(rows, expected, np.stack(drawn) if drawn else None)


def _row_blocks(n_spots: int, n_genes: int, n_arrays: int) -> Iterator[slice]:
    """Yield the rows of blocks for which so many arrays ``[n, G]`` fit into the budget."""
    chunk = chunk_rows(n_genes)
    max_rows = _BLOCK_BYTES // (4 * n_genes * (n_arrays + 8))
    n_rows = max(chunk, max_rows // chunk * chunk)
    for start in range(0, n_spots, n_rows):
        yield slice(start, min(start + n_rows, n_spots))
