"""A slide as networks read it: scaled, with its graph, as a whole or in tiles."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch_geometric.data import Data

from stflow_graph.config import Config, DataConfig
from stflow_graph.data.normalise import Normalisation
from stflow_graph.data.slide import Slide
from stflow_graph.errors import BadInput, count, unquoted
from stflow_graph.graph.tiles import GraphView, view_of
from stflow_graph.models.build import build_graph


@dataclasses.dataclass(frozen=True, eq=False)
class SlideInputs:
    """A slide and what networks read of it.

    Attributes:
        slide: the slide.
        data: scaled ``x`` and ``y``, ``pos`` and the graph, on the networks' device.
        graph: how layers run over the graph; None for networks that make their own.
    """

    slide: Slide
    data: Data
    graph: GraphView | None


def slide_inputs(
    slide: Slide,
    data: Data,
    device: torch.device,
    *,
    tile_size: int | None = None,
    above: int = 0,
) -> SlideInputs:
    """Return a slide's inputs on a device.

    Args:
        slide: the slide.
        data: from :func:`slide_data`; it is not changed.
        device: where the networks are.
        tile_size: as of ``graph.view_of``.
        above: as of ``graph.view_of``.
    """
    there = copy.copy(data).to(device)  # .to moves the tensors of the object itself
    graph = view_of(there, tile_size, above=above) if "edge_index" in there else None
    return SlideInputs(slide, there, graph)


def slide_data(slide: Slide, config: Config, normalisation: Normalisation) -> Data:
    """Return a slide's scaled ``x`` and ``y``, ``pos`` and the graph, on the CPU."""
    data = slide.to_data()
    data.x = torch.from_numpy(normalisation.embeddings(slide.x))
    if slide.y is not None:
        data.y = torch.from_numpy(normalisation.targets(slide.y))
    transformed: Data = build_graph(config)(data)
    return transformed


def normalisation_of(slides: Sequence[Slide], config: DataConfig) -> Normalisation:
    """Return the scaling of input and output, fitted on training slides."""
    return Normalisation.fit(
        (slide.x for slide in slides),
        [slide.truth for slide in slides],
        config.standardize,
        config.center_targets,
    )


def check_enough_spots(n_spots: int, n_neighbors: int, file: str | Path) -> None:
    """Refuse a slide that has not more spots than each spot has neighbours.

    Raises:
        BadInput: names the slide's file and the number of its spots.
    """
    if n_spots <= n_neighbors:
        expected = f"more than the {n_neighbors} neighbours of each spot"
        fix = "leave the slide out, or train with fewer neighbours (train --n-neighbors)"
        raise BadInput(file, "spots", unquoted(f"{count(n_spots, 'spot')}"), expected, fix)
