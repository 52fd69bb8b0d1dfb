"""Parts of a command's slides: jobs of an array share them without talking to each other."""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from stflow_graph.errors import BadConfig, short_repr

_Item = TypeVar("_Item")
_MAX_COUNT = 1_000_000
_AUTO = "auto"
_TASK = "SLURM_ARRAY_TASK_"


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several parts of a command's slides.

    Attributes:
        number: of this part, from 1 on.
        count: number of parts.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= _MAX_COUNT:
            raise BadConfig(
                f"part {self.number}/{self.count}: expected I/N with I from 1 to N, N at most "
                f"{_MAX_COUNT}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Part:
        """Return the part that a text names.

        Args:
            text: ``"I/N"``, or ``"auto"`` for the task of a SLURM array.
            environment: of the process, with SLURM's variables.

        Raises:
            BadConfig: another text, or no task of an array without gaps.
        """
        if text == _AUTO:
            return cls._of_task(environment)
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if match is None:
            raise BadConfig(f"part {short_repr(text)}: expected I/N, such as 2/8, or {_AUTO}")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of_task(cls, environment: Mapping[str, str]) -> Part:
        """Return the part of a task; its number may start anywhere and go in steps."""
        names = ("ID", "COUNT", "MIN")
        values = {name: environment.get(_TASK + name, "") for name in names}
        values |= {"STEP": environment.get(_TASK + "STEP", "1")}
        values |= {"MAX": environment.get(_TASK + "MAX", "")}
        for name in names:
            if not re.fullmatch(r"\d{1,9}", values[name], re.ASCII):
                raise BadConfig(
                    f"part {_AUTO}: {_TASK}{name} is {short_repr(values[name])}: expected a "
                    "number, as in a task of a SLURM array. Fix: --part I/N"
                )
        task, count, first = (int(values[name]) for name in names)
        step = int(values["STEP"]) if values["STEP"].isdecimal() else 0
        last = int(values["MAX"]) if values["MAX"].isdecimal() else first + step * (count - 1)
        # of the list 0,7 task 7 would be part 8 of 2: task 0 must not run alone either
        if step < 1 or (task - first) % step or last != first + step * (count - 1):
            raise BadConfig(f"part {_AUTO}: the array has gaps. Fix: --part I/N")
        return cls((task - first) // step + 1, count)

    def choose(
        self,
        items: Sequence[_Item],
        name: Callable[[_Item], str],
        n_bytes: Callable[[_Item], int],
    ) -> list[_Item]:
        """Return the items of this part, in their order.

        The largest item is dealt first, each to the part with the fewest bytes, so that parts
        differ by the largest one at most. Every job deals alike: each item is in one part, however
        items are ordered, as long as the same ones are there with the same sizes.

        Args:
            items: of all parts.
            name: returns an item's name, which no other has; it decides among items of one size.
            n_bytes: returns an item's size.
        """
        sizes = [max(n_bytes(item), 1) for item in items]
        loads = [(0, number) for number in range(1, self.count + 1)]
        mine = set()
        for i in largest_first(sizes, list(map(name, items))):
            load, number = heapq.heappop(loads)
            heapq.heappush(loads, (load + sizes[i], number))
            if number == self.number:
                mine.add(i)
        return [item for i, item in enumerate(items) if i in mine]


def largest_first(sizes: Sequence[int], names: Sequence[str]) -> list[int]:
    """Return numbers of items, the largest first; names decide among items of one size."""
    return sorted(range(len(sizes)), key=lambda i: (-sizes[i], names[i]))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if it is not there."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:  # whoever opens it reports it
        return 0
