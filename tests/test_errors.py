import pytest

from stflow_graph.errors import (
    BadConfig,
    BadInput,
    SomeFailed,
    StorageFailed,
    attempt_each,
    short_repr,
    unquoted,
)


def test_a_message_is_one_safe_line():
    error = BadInput("a\n.h5", "obs", "\x1b[2J" + "x" * 500, "names", "rename it")
    text = str(error)
    assert text.isprintable()
    assert len(text) < 300
    assert text.endswith("expected names. Fix: rename it")
    assert short_repr(unquoted("3 rows")) == "3 rows"
    assert short_repr("3 rows") == "'3 rows'"


def fail(error: Exception):
    def do() -> None:
        raise error

    return do


def test_the_others_are_done_and_those_that_failed_named():
    done = []
    work = [
        ("A", fail(BadInput("a.h5", "img", 1, "2"))),
        ("B", lambda: done.append("B")),
        ("C", fail(BadConfig("width"))),
    ]
    with pytest.raises(SomeFailed, match=r"2 of 3 slides failed: A: a.h5: img.*; C: width"):
        attempt_each(work)
    assert done == ["B"]


def test_a_single_failure_is_its_own_error_and_a_broken_machine_stops_all():
    with pytest.raises(BadConfig):
        attempt_each([("A", fail(BadConfig("x")))])
    with pytest.raises(StorageFailed):
        attempt_each([("A", fail(StorageFailed("full"))), ("B", lambda: None)])
    assert attempt_each([("A", lambda: 1), ("B", lambda: 2)]) == [1, 2]
