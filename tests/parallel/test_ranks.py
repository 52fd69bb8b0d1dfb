from __future__ import annotations

import time

import pytest
from ranks import in_threads
from torch.distributed import HashStore

from stflow_graph.errors import BadInput
from stflow_graph.parallel import ranks as module
from stflow_graph.parallel.ranks import RankFailed, Ranks, is_rank, join


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(module, "MAX_SILENCE", 0.4)
    monkeypatch.setattr(module, "MAX_START", 0.8)


def test_every_number_is_claimed_once():
    found = in_threads(3, lambda ranks: list(ranks.claims(50)))
    assert sorted(sum(found, [])) == list(range(50))


def test_rounds_do_not_mix():
    def claim(ranks: Ranks) -> tuple[list[int], list[int]]:
        return list(ranks.claims(4)), list(ranks.claims(7))

    found = in_threads(2, claim)
    assert sorted(found[0][0] + found[1][0]) == list(range(4))
    assert sorted(found[0][1] + found[1][1]) == list(range(7))


def test_the_others_hear_what_the_first_tells():
    def talk(ranks: Ranks) -> object:
        if ranks.rank:
            return ranks.hear()
        time.sleep(0.05)
        ranks.tell({"folds": [1, 2]})
        return None

    assert in_threads(3, talk) == [None, {"folds": [1, 2]}, {"folds": [1, 2]}]


def test_the_counter_counts_all_ranks():
    def count(ranks: Ranks) -> list[int]:
        counter = ranks.counter()
        return [counter("a") for _ in range(10)]

    assert sorted(sum(in_threads(3, count), [])) == list(range(1, 31))


def test_results_arrive_once_and_are_waited_for():
    def share(ranks: Ranks) -> list[int]:
        results = ranks.results(4)
        if ranks.rank:
            for i in (2, 0, 3):
                results.put(i, 10 * i)
                time.sleep(0.02)
            return []
        early = list(results.ready())
        results.put(1, 10)
        return early + list(results.rest())

    assert sorted(in_threads(2, share)[0]) == [0, 10, 20, 30]


def test_a_rank_without_a_sign_of_life_is_named(fast):
    store = HashStore()
    store.set("host/1", "node7")
    store.set("beat/1", "5")
    waiting = Ranks(store, 0, 2).results(1)
    with pytest.raises(RankFailed, match=r"rank 1 on node7: no sign of life for .*same command"):
        list(waiting.rest())


def test_a_rank_that_never_came_is_named(fast):
    start = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1: no sign of life"):
        list(Ranks(HashStore(), 0, 2).results(1).rest())
    assert time.monotonic() - start > module.MAX_START


def test_a_slow_rank_is_waited_for(fast):
    def share(ranks: Ranks) -> list[int]:
        results = ranks.results(1)
        if ranks.rank:
            time.sleep(3 * module.MAX_SILENCE)
            results.put(0, 7)
        return [] if ranks.rank else list(results.rest())

    assert in_threads(2, share)[0] == [7]


def test_a_rank_that_has_left_is_not_lost(fast):
    store = HashStore()
    ranks = Ranks(store, 0, 2)
    store.set("beat/1", "1")
    store.set("left/0/1", "")
    ranks.check_others()
    time.sleep(1.5 * module.MAX_SILENCE)
    ranks.check_others()
    ranks.tell("another round")
    with pytest.raises(RankFailed, match="rank 1"):
        ranks.check_others()


def test_the_first_leaves_last():
    left: list[int] = []

    def work(ranks: Ranks) -> None:
        time.sleep(0.1 * ranks.rank)
        ranks.leave()
        left.append(ranks.rank)

    in_threads(3, work)
    assert left == [1, 2, 0]


def test_what_ends_a_rank_is_told_to_the_others():
    def work(ranks: Ranks) -> None:
        with ranks.telling_failures():
            if ranks.rank:
                raise BadInput("slide.h5", "x", 1, "2")
            list(ranks.results(1).rest())

    first, second = in_threads(2, work)
    assert isinstance(second, BadInput)
    assert isinstance(first, RankFailed)
    assert "rank 1" in str(first)
    assert str(second) in str(first)


def test_an_error_of_all_ranks_is_told_by_the_first_alone():
    def work(ranks: Ranks) -> bool:
        message = "no such model" if ranks.rank < 2 else "another"
        told = ranks.is_told_by_first(message, 1.0)
        ranks.tell_failure(message)
        return told

    assert in_threads(3, work) == [False, True, False]


def test_a_lost_store_is_a_lost_rank():
    class Lost(HashStore):
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(RankFailed, match=r"the store of the ranks is lost.*Connection reset"):
        list(Ranks(Lost(), 0, 2).results(1).ready())


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_process_without_all_variables_is_alone(monkeypatch, missing):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    assert is_rank()
    monkeypatch.delenv(missing)
    assert not is_rank()
    assert join() is None


def test_a_world_of_one_is_alone(monkeypatch):
    values = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert join() is None


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", "x"), ("RANK", "x")])
def test_variables_that_are_no_numbers_are_refused(monkeypatch, name, value):
    values = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for key, given in {**values, name: value}.items():
        monkeypatch.setenv(key, given)
    with pytest.raises(RankFailed, match="ranks: "):
        join()
