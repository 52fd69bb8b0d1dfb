"""A command's slides shared out over array jobs or ranks; one that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from stflow_graph.errors import Failures, StflowError, attempt_each, is_of_machine, text_of
from stflow_graph.parallel.parts import Part, largest_first
from stflow_graph.parallel.ranks import Ranks

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Share = Part | Ranks


def attempt_shared(
    items: Sequence[_Item],
    do: Callable[[_Item], _Result],
    *,
    name: Callable[[_Item], str],
    n_bytes: Callable[[_Item], int],
    key: Callable[[_Item], str] | None = None,
    share: Share | None = None,
    report: Callable[[_Result], None] | None = None,
) -> list[_Result]:
    """Run a task for every item that is this process's.

    Args:
        items: of all processes.
        do: the task.
        name: returns an item's name, for messages.
        n_bytes: returns an item's size; among ranks the largest are begun first.
        key: returns a name that no other item has; None: its name.
        share: a part of an array job, which has its items alone; or ranks, where each takes the
            next one as soon as it is free; None: all are this process's.
        report: called with every result; among ranks by the first one, with those of all.

    Returns:
        The results in the order of the items: of the part, or of all ranks, which the first waits
        for; the others return their own.

    Raises:
        SomeFailed: some of several failed; among ranks the first one raises it for all.
        StflowError: the only one failed, or the machine did (disk, memory).
        RankFailed: another rank did.
    """

    def run(item: _Item) -> _Result:
        result = do(item)
        if report is not None:
            report(result)
        return result

    if isinstance(share, Ranks):
        order = largest_first(list(map(n_bytes, items)), list(map(key or name, items)))
        return _attempt_by_ranks(items, do, name, order, share, report)
    chosen = items if share is None else share.choose(items, key or name, n_bytes)
    return attempt_each([(name(item), partial(run, item)) for item in chosen])


def _attempt_by_ranks(
    items: Sequence[_Item],
    do: Callable[[_Item], _Result],
    name: Callable[[_Item], str],
    order: Sequence[int],
    ranks: Ranks,
    report: Callable[[_Result], None] | None,
) -> list[_Result]:
    claims, shared = ranks.claims(len(items)), ranks.results(len(items))
    done: dict[int, _Result] = {}
    failed: dict[int, StflowError] = {}

    def take(arrived: Iterable[tuple[int, _Result | StflowError]]) -> None:
        for i, result in arrived:
            if isinstance(result, StflowError):
                failed[i] = result
                continue
            done[i] = result
            if report is not None:
                report(result)

    with ranks.telling_failures(), ranks.watching():
        for number in claims:
            i = order[number]
            result = _result_or_error(do, items[i])
            shared.put(i, (i, result))
            if ranks.rank == 0:  # it speaks for all
                take(shared.ready())
            elif not isinstance(result, StflowError):
                done[i] = result
        if ranks.rank == 0:
            take(shared.rest())
        ranks.leave()
        failures = Failures(len(items))
        for i in sorted(failed):
            if len(items) == 1:
                raise failed[i]
            failures.add(name(items[i]), failed[i])
        failures.check()
        return [done[i] for i in sorted(done)]


def _result_or_error(do: Callable[[_Item], _Result], item: _Item) -> _Result | StflowError:
    """Return what a task gives, or the slide's error; raises those of the machine."""
    try:
        return do(item)
    except Exception as error:
        if is_of_machine(error):
            raise
        return error if isinstance(error, StflowError) else StflowError(text_of(error))
