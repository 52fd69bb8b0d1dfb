"""Batches of regions of the slides to learn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from stflow_graph.config import Config, TrainConfig
from stflow_graph.graph.regions import cover_slide, cut_region, join_regions, random_region
from stflow_graph.parallel.ahead import results_ahead
from stflow_graph.parallel.group import Group

_RESIDENT = 0.4  # of a GPU's free memory, for the slides


class Slides:
    """The slides to learn from: on the network's device where they fit, positions on the CPU too.

    Regions are chosen on the CPU, so that they do not depend on the device.

    Args:
        slides: with their graphs and context.
        device: the network's.
        positions: of each slide, ``[N, 2]``, where the slides themselves are made on demand: then
            the next step's are made while the network takes a step. None: slides are in memory.
    """

    def __init__(
        self,
        slides: Sequence[Data],
        device: torch.device,
        positions: Sequence[Tensor] | None = None,
    ) -> None:
        self._slides, self._looks_ahead = slides, positions is not None
        self._positions = [data.pos.cpu() for data in slides] if positions is None else positions
        if device.type == "cuda" and positions is None:
            needed = sum(x.nbytes for data in slides for _, x in data if isinstance(x, Tensor))
            if needed <= _RESIDENT * torch.cuda.mem_get_info(device)[0]:
                self._slides = [copy.copy(data).to(device) for data in slides]

    def batches(
        self, config: Config, generator: torch.Generator, group: Group | None = None
    ) -> Iterator[tuple[Batch | None, int]]:
        """Yield an epoch's batches of regions, with their graphs and halos.

        Args:
            config: the run's configuration.
            generator: of the regions and their order.
            group: the processes that share every step; None: this one takes all of it.

        Yields:
            This process's regions of a step, None if it has none; and how many the step has.
        """
        settings = config.train
        n_hops = config.denoiser.n_layers if config.denoiser.name == "graph" else 0
        plan = [
            (number, rows)
            for number, pos in enumerate(self._positions)
            for rows in _regions(pos, settings, generator)
        ]

        # a region is cut when its turn comes, so that only those of one step are in memory
        def cut(part: Tensor) -> tuple[Batch | None, int]:
            chosen: Sequence[tuple[int, Tensor]] = [plan[i] for i in part.tolist()]
            if group is not None:
                chosen = group.own(chosen)
            regions = [cut_region(self._slides[number], rows, n_hops) for number, rows in chosen]
            return join_regions(regions) if regions else None, len(part)

        order = torch.randperm(len(plan), generator=generator)
        steps = order.split(settings.batch_size)
        if not self._looks_ahead:
            yield from map(cut, steps)
            return
        with ThreadPoolExecutor(1) as pool:
            yield from results_ahead((pool.submit(cut, step) for step in steps), 1)


def _regions(pos: Tensor, settings: TrainConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of a slide's regions in one epoch, given its positions ``[N, 2]``."""
    max_spots = settings.max_region_spots
    for _ in range(settings.regions_per_slide):
        if settings.smallest_region == 1 and len(pos) > max_spots:
            yield from cover_slide(pos, generator, max_spots)
            continue
        for _ in range(math.ceil(len(pos) / max_spots)):
            yield random_region(
                pos,
                generator,
                min_fraction=settings.smallest_region,
                max_spots=max_spots,
            )
