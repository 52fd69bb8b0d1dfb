from __future__ import annotations

import threading
import time

import pytest
import torch

from stflow_graph.graph.threads import in_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_parts():
    def late(part: int) -> tuple[int, str]:
        time.sleep(0.02 if part % 3 == 0 else 0)
        return part**2, threading.current_thread().name

    found = list(in_threads(late, range(20), CPU))
    assert [square for square, _ in found] == [part**2 for part in range(20)]
    assert 1 < len({thread for _, thread in found}) <= 3


def test_each_part_has_one_thread_and_the_caller_its_own_again():
    seen = list(in_threads(lambda _: torch.get_num_threads(), range(5), CPU))
    assert seen == [1] * 5
    assert torch.get_num_threads() == 3
    results = in_threads(lambda part: part, range(50), CPU)
    next(results)
    results.close()  # as when what takes the results fails
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("n_parts", [0, 1, 5])
def test_modes_are_the_callers(n_threads, n_parts):
    torch.set_num_threads(n_threads)

    def modes(_: int) -> tuple[object, ...]:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            (torch.ones(2, 2) @ torch.ones(2, 2)).dtype,
        )

    def found() -> list[tuple[object, ...]]:
        return list(in_threads(modes, range(n_parts), CPU))

    assert found() == [(False, True, torch.float32)] * n_parts
    with torch.no_grad():
        assert found() == [(False, False, torch.float32)] * n_parts
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert found() == [(True, False, torch.bfloat16)] * n_parts
    with torch.autocast("cpu", torch.float16):
        assert found() == [(False, True, torch.float16)] * n_parts


def test_results_do_not_depend_on_the_number_of_threads():
    parts = torch.randn(4000, 70, generator=torch.Generator().manual_seed(0)).split(900)
    weight = torch.randn(70, 70, generator=torch.Generator().manual_seed(1))
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.append(torch.cat(list(in_threads(lambda part: part @ weight, parts, CPU))))
    assert torch.equal(found[1], found[2])
    torch.testing.assert_close(found[0], found[1])


def test_few_results_wait_and_an_error_ends_the_rest():
    done: list[int] = []

    def fails(part: int) -> int:
        done.append(part)
        if part == 4:
            raise RuntimeError("part 4")
        return part

    results = in_threads(fails, range(1000), CPU)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(done) <= 8
    with pytest.raises(RuntimeError, match="part 4"):
        list(results)
    assert len(done) < 20
    assert torch.get_num_threads() == 3
