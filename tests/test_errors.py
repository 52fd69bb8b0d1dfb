import pickle

import pytest

from stflow_graph.errors import (
    BadConfig,
    BadInput,
    SomeFailed,
    StorageFailed,
    as_bad_input,
    attempt_each,
    count,
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


def test_an_error_of_any_library_is_the_slides_own(capsys):
    work = [("A", fail(ValueError("deep inside\na library"))), ("B", lambda: 1)]
    message = r"1 of 2 slides failed: A: unexpected: deep inside a library \(--debug shows more\)$"
    with pytest.raises(SomeFailed, match=message) as caught:
        attempt_each(work)
    assert isinstance(caught.value.__cause__, ValueError)  # whose traceback is printed
    with pytest.raises(SomeFailed, match=message.replace("of 2 slides", "of 1 slide")):
        attempt_each(work[:1])


MACHINE = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
    OSError(24, "Too many open files"),
    MemoryError(),
    RuntimeError("could not create a primitive"),
]


@pytest.mark.parametrize("error", MACHINE)
def test_an_error_of_the_machine_stops_all(error):
    with pytest.raises(type(error)):
        attempt_each([("A", fail(error)), ("B", lambda: pytest.fail("it goes on"))])


def test_out_of_memory_is_not_the_files_fault():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)), as_bad_input("a.h5", "content", "data"):
            raise error


def test_many_failures_are_named_in_a_short_message():
    work = [(f"S{i}", fail(BadInput("x" * 9999, "img", "y" * 9999, "z"))) for i in range(500)]
    with pytest.raises(SomeFailed, match=r"500 of 500 slides failed: S0: .*; and S4, ") as caught:
        attempt_each(work)
    text = str(caught.value)
    assert text.endswith(", S43 and 456 more")
    assert len(text) < 2000
    head, first, *others, last = caught.value.lines
    assert (head, last) == ("500 of 500 slides failed:", "and 400 more")
    assert first.startswith("S0: xxx")
    assert len(others) == 99
    assert all(len(line) <= 360 for line in others)


def test_a_single_failure_of_several_needs_no_lines():
    with pytest.raises(SomeFailed) as caught:
        attempt_each([("A", fail(BadConfig("x"))), ("B", lambda: None)])
    assert (str(caught.value), caught.value.lines) == ("1 of 2 slides failed: A: x", ())


def test_paths_are_shown_up_to_500_characters():
    assert str(BadInput("x" * 500, "f", 1, "2")).startswith("x" * 500 + ": f")
    text = str(BadInput("x" * 9999 + "y", "f", 1, "2"))
    assert len(text) < 600
    assert "xy: f: found 1" in text


def test_values_that_have_no_short_text_are_shown_by_type():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, deep):
        assert short_repr(value) == f"a value ({type(value).__name__}) too long to show"


def test_a_single_failure_is_its_own_error_and_a_broken_machine_stops_all():
    with pytest.raises(BadConfig):
        attempt_each([("A", fail(BadConfig("x")))])
    with pytest.raises(StorageFailed):
        attempt_each([("A", fail(StorageFailed("full"))), ("B", lambda: None)])
    assert attempt_each([("A", lambda: 1), ("B", lambda: 2)]) == [1, 2]


def test_errors_of_workers_keep_kind_and_message():
    for error in (
        BadInput("a.h5", "img", 3, "4", "copy it"),
        BadConfig("no"),
        SomeFailed("1 of 2"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize("kind", [BadConfig, SomeFailed, StorageFailed])
def test_what_libraries_quote_from_files_is_one_printable_line(kind):
    text = str(kind("unexpected key\n  a\x7fb\x1b[2J " + "x" * 10_000))
    assert text.isprintable()
    assert text.startswith(r"unexpected key   a\x7fb\x1b[2J x")
    assert len(text) == 2000


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("not a\nTIFF"), "found damaged or other data (not a TIFF), expected"),
        (KeyError("config"), "found damaged or other data (no entry 'config'), expected"),
        (TypeError("'int' object is not iterable"), "found damaged or other data, expected"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "(no UTF-8 text), expected"),
        (EOFError(), "(no reason stated), expected"),
    ],
)
def test_errors_of_libraries_are_told_without_their_class(error, text):
    with pytest.raises(BadInput) as caught, as_bad_input("x.tif", "content", "a TIFF"):
        raise error
    assert text in str(caught.value)
    assert type(error).__name__ not in str(caught.value)


def test_counts_agree_with_their_noun():
    assert [count(n, "slide") for n in (0, 1, 1200)] == ["0 slides", "1 slide", "1,200 slides"]
    assert [count(n, "patch", "patches") for n in (1, 2)] == ["1 patch", "2 patches"]
    with pytest.raises(SomeFailed, match="1 of 1 slide failed"):
        attempt_each([("A", fail(ValueError("x")))])
