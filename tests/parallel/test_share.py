from __future__ import annotations

import errno
import random
import time
from collections import Counter

import pytest
from ranks import in_threads

from stflow_graph.errors import BadInput, SomeFailed, StorageFailed
from stflow_graph.parallel.parts import Part
from stflow_graph.parallel.ranks import RankFailed, Ranks
from stflow_graph.parallel.share import attempt_shared


def run(share, items, do, **options):
    return attempt_shared(items, do, name=str, n_bytes=len, share=share, **options)


def test_without_a_share_all_items_are_done_in_order():
    reported: list[str] = []
    assert run(None, ["a", "b"], str.upper, report=reported.append) == ["A", "B"] == reported


def test_a_part_does_its_items():
    items = [f"{i}" * (i + 1) for i in range(9)]
    parts = [run(Part(i, 3), items, str.upper) for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(items)
    assert all(parts)


@pytest.mark.parametrize("seed", range(100))
def test_no_schedule_loses_or_doubles_a_slide(seed):
    rng = random.Random(seed)
    n_ranks, n_items = rng.randint(2, 4), rng.randint(1, 12)
    items = [f"{i:02}" + "x" * rng.randint(0, 9) for i in range(n_items)]
    pauses = {item: rng.choice([0, 0, 0.001, 0.004]) for item in items}
    broken = {item for item in items if rng.random() < 0.2}
    done, reported = list[str](), list[str]()

    def do(item: str) -> str:
        done.append(item)
        time.sleep(pauses[item])
        if item in broken:
            raise BadInput(item, "x", 1, "2") if rng.random() < 0.5 else KeyError(item)
        return item.upper()

    found = in_threads(n_ranks, lambda ranks: run(ranks, items, do, report=reported.append))
    assert Counter(done) == Counter(items)
    good = [item.upper() for item in items if item not in broken]
    assert sorted(reported) == sorted(set(reported))
    if broken and n_items == 1:
        assert isinstance(found[0], Exception)
    elif broken:
        assert isinstance(found[0], SomeFailed)
        assert {name for name, _ in found[0].failed} == broken
    else:
        assert found[0] == good
    # the first reports all, and each of the others its own once more if it is asked to
    assert set(reported) == set(good)
    assert all(result in good for own in found[1:] for result in own)


def test_the_largest_are_begun_first():
    begun: list[str] = []
    items = ["a", "cccc", "bb", "ddd"]
    in_threads(2, lambda ranks: run(ranks, items, begun.append))
    assert set(begun[:2]) == {"cccc", "ddd"}
    assert begun[-1] == "a" or begun[-2] == "a"


def test_a_slow_rank_keeps_no_slides_from_the_others():
    def work(ranks: Ranks) -> int:
        did = []

        def do(item: str) -> None:
            time.sleep(0.2 if ranks.rank == 1 else 0.02)
            did.append(item)

        run(ranks, [str(i) for i in range(12)], do)
        return len(did)

    first, slow = in_threads(2, work)
    assert first + slow == 12
    assert slow <= 3


def test_the_error_of_the_only_slide_is_raised_as_it_is():
    def do(item: str) -> None:
        raise BadInput(item, "x", 1, "2")

    first, second = in_threads(2, lambda ranks: run(ranks, ["only"], do))
    assert isinstance(first, BadInput)
    assert second == []


@pytest.mark.parametrize("error", [StorageFailed("disk full"), OSError(errno.ENOSPC, "no space")])
def test_a_full_disk_ends_its_rank_and_the_others_are_told(error):
    def work(ranks: Ranks) -> list[None]:
        def do(item: str) -> None:
            time.sleep(0.01)
            if ranks.rank:
                raise error

        return run(ranks, [str(i) for i in range(8)], do)

    first, second = in_threads(2, work)
    assert second is error
    assert isinstance(first, RankFailed)
    assert "rank 1" in str(first)
