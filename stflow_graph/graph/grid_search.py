"""Nearest neighbours on any device, by a grid of square cells.

Spots are sorted by cell. A row's candidates are those of the cells around its own; they hold the
``width`` nearest if the farthest of these is nearer than the edge of the cells looked at. Rows for
which this is not so look further, and the last ask a k-d tree on the CPU.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from stflow_graph.graph.points import take_points
from stflow_graph.graph.tree_search import TreeSearch

# cells on each side of a row's own, tried one after the other
_REACHES = (2, 6)
# spots of the nearest cells, of those wanted: a disc holds three quarters of its square
_MARGIN = 1.8
_CELLS_PER_SPOT = 8  # of the whole rectangle; tissue far apart would need memory without end
_MAX_CANDIDATES = 2**10  # of a row
_CHUNK = 2**24  # candidates at a time
_ROWS = 2**20


class GridSearch:
    """The search by a grid, where the positions are.

    Args:
        pos: ``[n, 2]`` float64 positions.
        width: number of neighbours that most searches will ask for.
    """

    def __init__(self, pos: Tensor, width: int = 22) -> None:
        self.points, self.device = pos, pos.device
        self._ahead: Tensor | None = None
        n = len(pos)
        origin = pos.amin(0)
        extent = (pos.amax(0) - origin).clamp(min=1e-300)
        # of cells that all hold spots; refined once, as tissue does not fill its rectangle
        per_cell = _MARGIN * width / (2 * _REACHES[0] + 1) ** 2
        side = self._bounded((extent.prod() * per_cell / n).sqrt(), extent)
        occupied = len(self._cells(origin, extent, side)[0].unique())
        side = self._bounded(side * (occupied * per_cell / n) ** 0.5, extent)
        self.side = side
        key, self._place, self._shape = self._cells(origin, extent, side)
        self._order = key.argsort()
        n_cells = self._shape[0] * self._shape[1]
        cells = torch.arange(n_cells + 1, device=self.device)
        self._starts = torch.searchsorted(key[self._order], cells)

    def _bounded(self, side: Tensor, extent: Tensor) -> Tensor:
        """Return the side of a cell, at least so large that cells are not many times the spots."""
        n = len(self.points)
        area = (extent.prod() / (_CELLS_PER_SPOT * n)).sqrt()
        return torch.maximum(side, torch.maximum(area, extent.max() / (_CELLS_PER_SPOT * n)))

    def _cells(
        self, origin: Tensor, extent: Tensor, side: Tensor
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return the number of each spot's cell, its row and column, and how many there are."""
        place = ((self.points - origin) / side).long()
        rows, columns = (place.amax(0) + 1).tolist()
        return place[:, 0] * columns + place[:, 1], place, (rows, columns)

    def __call__(self, rows: Tensor, width: int) -> Tensor:
        """Return the ``[m, width]`` nearest of ``rows [m]``, in ascending order of distance."""
        if self._ahead is not None and self._ahead.size(1) == width:
            return self._ahead[rows]
        return self._search(rows, width)

    def _search(self, rows: Tensor, width: int) -> Tensor:
        index = rows.new_empty(len(rows), width)
        left = torch.arange(len(rows), device=self.device)
        for reach in _REACHES:
            if len(left):
                left = self._look(rows, left, width, reach, index)
        if len(left):
            index[left] = self._tree(rows[left], width)
        return index

    def distances(self, width: int, ahead: int = 0) -> Tensor:
        """Return the ``[n, width]`` distances to the nearest of every spot, in ascending order.

        Args:
            width: at most n.
            ahead: width of a search that will follow, which is then answered from memory.
        """
        index = self._search(torch.arange(len(self.points), device=self.device), max(width, ahead))
        self._ahead = index[:, :ahead] if ahead else None
        parts = zip(index[:, :width].split(_ROWS), self.points.split(_ROWS), strict=True)
        return torch.cat([_squared(self.points, near, own).sqrt() for near, own in parts])

    @functools.cached_property
    def _tree(self) -> TreeSearch:
        return TreeSearch(self.points)

    def _look(self, rows: Tensor, left: Tensor, width: int, reach: int, index: Tensor) -> Tensor:
        """Fill in the rows ``left`` of ``index``; return those that must look further."""
        n_rows, n_columns = self._shape
        place = self._place[rows[left]]
        around = torch.arange(-reach, reach + 1, device=self.device)
        strip = place[:, :1] + around  # [m, 2 reach + 1]: rows of cells, whose spots are together
        inside = (strip >= 0) & (strip < n_rows)
        first = strip * n_columns + (place[:, 1:] - reach).clamp(min=0)
        last = strip * n_columns + (place[:, 1:] + reach).clamp(max=n_columns - 1) + 1
        starts = self._starts[torch.where(inside, first, 0)]
        ends = torch.where(inside, self._starts[torch.where(inside, last, 0)], starts)
        bounds = _cumulated(ends - starts)
        total = bounds[:, -1]
        possible = (total >= width) & (total <= _MAX_CANDIDATES)
        done = torch.zeros_like(possible)
        chosen = possible.nonzero().squeeze(1)
        if not len(chosen):
            return left
        widest = int(total[chosen].max())
        for part in chosen.split(max(1, _CHUNK // widest)):
            candidates, there = self._candidates(starts[part], bounds[part], widest)
            squared = _squared(self.points, candidates, self.points[rows[left[part]]])
            squared.masked_fill_(~there, torch.inf)
            nearest, which = squared.topk(width, dim=1, largest=False)
            index[left[part]] = candidates.gather(1, which)
            done[part] = nearest[:, -1] < (reach * self.side) ** 2
        return left[~done]

    def _candidates(self, starts: Tensor, bounds: Tensor, widest: int) -> tuple[Tensor, Tensor]:
        """Return the spots of each row's strips of cells ``[m, widest]``, and which are there."""
        column = torch.arange(widest, device=self.device).expand(len(starts), -1).contiguous()
        strip = torch.searchsorted(bounds, column, right=True)
        there = strip < bounds.size(1)
        strip = strip.clamp(max=bounds.size(1) - 1)
        before = torch.cat([torch.zeros_like(bounds[:, :1]), bounds[:, :-1]], dim=1)
        place = starts.gather(1, strip) + column - before.gather(1, strip)
        return self._order[torch.where(there, place, 0)], there


def _squared(points: Tensor, index: Tensor, own: Tensor) -> Tensor:
    """Return squared distances ``[m, width]`` from ``own [m, 2]`` to ``points[index]``."""
    # differences, as the rule for neighbours takes them: products lose half of the digits
    return (take_points(points, index) - own[:, None]).square_().sum(-1)


def _cumulated(lengths: Tensor) -> Tensor:
    """Return the cumulative sums of ``lengths [m, few]``; torch's scan is slow on short rows."""
    sums = [lengths[:, 0]]
    for column in lengths.unbind(1)[1:]:
        sums.append(sums[-1] + column)
    return torch.stack(sums, dim=1)
