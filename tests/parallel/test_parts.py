"""Parts are disjoint, complete and balanced, whatever the order and the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stflow_graph.errors import BadConfig
from stflow_graph.parallel.parts import Part, size_of

SIZES = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 1000), max_size=30)


def dealt(sizes: dict[str, int], names: list[str], count: int) -> list[list[str]]:
    parts = [Part(number, count) for number in range(1, count + 1)]
    return [part.choose(names, str, sizes.__getitem__) for part in parts]


@given(SIZES, st.integers(1, 12), st.randoms())
def test_each_item_is_in_one_part_in_any_order(sizes, count, random):
    names = list(sizes)
    parts = dealt(sizes, names, count)
    assert sorted(name for part in parts for name in part) == sorted(names)
    for part in parts:
        assert part == [name for name in names if name in part]  # their order is kept
    random.shuffle(names)
    assert [set(part) for part in dealt(sizes, names, count)] == [set(part) for part in parts]


@given(SIZES, st.integers(1, 12))
def test_parts_are_balanced_within_the_largest_item(sizes, count):
    loads = [sum(max(sizes[n], 1) for n in part) for part in dealt(sizes, list(sizes), count)]
    assert max(loads) - min(loads) <= max([1, *sizes.values()])


def test_the_largest_is_dealt_first_and_names_decide_among_equals():
    sizes = {"b": 2, "c": 2, "a": 2, "z": 9}
    assert dealt(sizes, list(sizes), 2) == [["z"], ["b", "c", "a"]]
    sizes = {"b": 2, "c": 2, "a": 2}
    assert dealt(sizes, list(sizes), 2) == [["c", "a"], ["b"]]


def task(number: int, count: int, first: int, **more: int) -> dict[str, str]:
    values = {"ID": number, "COUNT": count, "MIN": first, **more}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/8", {}, Part(2, 8)),
        ("1/1", task(5, 9, 0), Part(1, 1)),
        ("auto", task(0, 8, 0), Part(1, 8)),
        ("auto", task(8, 8, 1, MAX=8, STEP=1), Part(8, 8)),
        ("auto", task(7, 3, 3, MAX=7, STEP=2), Part(3, 3)),
    ],
)
def test_texts_that_name_a_part(text, environment, expected):
    assert Part.parse(text, environment) == expected


@pytest.mark.parametrize(
    "text", ["", "2", "0/8", "9/8", "-1/8", "1/0", "a/b", "1/8/2", "٣/٨", "1/1e3"]
)
def test_texts_that_name_none(text):
    with pytest.raises(BadConfig, match="part .*expected I/N"):
        Part.parse(text, {})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "TASK_ID is ''"),
        (task(1, 2, 1) | {"SLURM_ARRAY_TASK_COUNT": "x"}, "TASK_COUNT is 'x'"),
        (task(0, 2, 0, MAX=7, STEP=1), "gaps"),
        (task(7, 2, 0, MAX=7, STEP=1), "gaps"),
        (task(4, 3, 3, STEP=2), "gaps"),
        (task(3, 3, 3, STEP=0), "gaps"),
        (task(9, 2, 0), "part 10/2"),
    ],
)
def test_a_task_of_no_array_or_of_one_with_gaps(environment, message):
    with pytest.raises(BadConfig, match=message):
        Part.parse("auto", environment)


def test_sizes_of_files_and_folders(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(bytes(5))
    (tmp_path / "a/d").write_bytes(bytes(2))
    assert [size_of(tmp_path / name) for name in ("a/d", "a", "absent")] == [2, 7, 0]
