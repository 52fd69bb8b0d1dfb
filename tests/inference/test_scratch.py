from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from stflow_graph.errors import StorageFailed
from stflow_graph.inference import scratch as module
from stflow_graph.inference.scratch import ScratchFiles

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_arrays_hold_what_is_written(tmp_path, size, dtype):
    arrays = ScratchFiles(tmp_path)
    written = torch.arange(size * 2).view(size, 2).to(dtype)
    made = []
    for i in range(3):
        growing = arrays.growing(size)
        for start in range(0, size, 2_000_001):
            rows = slice(start, start + 2_000_001)
            growing.put(rows, written[rows] + i)
        made.append(growing.whole())
    kept = arrays.keep(written.T)
    assert kept.is_contiguous()
    for i, array in enumerate(made):
        assert (array.shape, array.dtype) == ((size, 2), dtype)
        assert torch.equal(array, written + i)
    assert torch.equal(kept, written.T)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_an_array_too(tmp_path):
    arrays = ScratchFiles(tmp_path)
    empty = arrays.growing(0)
    empty.put(slice(0, 0), torch.ones(0, 3))
    assert empty.whole().shape == (0, 3)
    assert arrays.keep(torch.ones(2, 0)).shape == (2, 0)


def test_rows_come_one_after_the_other(tmp_path):
    growing = ScratchFiles(tmp_path).growing(4)
    growing.put(torch.tensor([0, 1]), torch.ones(2, 3))
    with pytest.raises(ValueError, match="row 3 is put into a file after 2 rows"):
        growing.put(torch.tensor([3]), torch.ones(1, 3))
    growing.put(slice(2, 4), torch.zeros(2, 3))
    assert growing.whole().sum(1).tolist() == [3, 3, 0, 0]


def test_what_is_needed_briefly_is_in_memory_unless_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BRIEFLY", 4 * 3 * 4)
    made: list[int] = []
    of_bytes = ScratchFiles._file
    monkeypatch.setattr(ScratchFiles, "_file", lambda *a: (made.append(a[1]), of_bytes(*a))[1])
    arrays = ScratchFiles(tmp_path)
    for n_columns, briefly, expected in ((3, True, []), (4, True, [64]), (3, False, [64, 48])):
        growing = arrays.growing(4, briefly=briefly)
        growing.put(slice(0, 4), torch.ones(4, n_columns))
        assert growing.whole().sum() == 4 * n_columns
        assert made == expected


def test_small_arrays_share_files_until_one_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARED", 4096)
    made, allocate = [], module._allocate
    monkeypatch.setattr(module, "_allocate", lambda *a: (made.append(a[1]), allocate(*a)))
    arrays = ScratchFiles(tmp_path)
    kept = [arrays.keep(torch.full((100,), float(i))) for i in range(20)]  # 400 bytes, 448 aligned
    assert made == [4096, 4096, 4096]  # nine in each
    large = arrays.keep(torch.full((1000,), 5.0))
    assert made[3:] == [4000]
    assert all((each == i).all() for i, each in enumerate(kept))
    assert (large == 5).all()


def mapped_files(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


@linux
def test_the_file_of_an_array_goes_with_it(tmp_path):
    arrays = ScratchFiles(tmp_path)
    a, b = (arrays.keep(torch.ones(2**22, 2)) for _ in range(2))
    view = a[3:5]
    assert mapped_files(tmp_path) == 2
    del b
    assert mapped_files(tmp_path) == 1
    del a
    assert mapped_files(tmp_path) == 1
    assert view.sum() == 4
    del view
    assert mapped_files(tmp_path) == 0


@linux
def test_pages_are_handed_to_the_system_and_values_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RESIDENT", 2**24)
    monkeypatch.setattr(module, "_EVERY", 0.01)
    with ScratchFiles(tmp_path) as arrays:
        before = module._mapped()
        growing = arrays.growing(2**24)
        for i in range(0, 2**24, 2**20):
            growing.put(slice(i, i + 2**20), torch.full((2**20, 2), float(i)))
        array = growing.whole()
        assert array.sum() > 0
        deadline = time.monotonic() + 20
        while module._mapped() > before + 2**26 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert module._mapped() <= before + 2**26  # of 2^27 bytes
        for i in range(0, 2**24, 2**20):
            assert (array[i : i + 2**20] == i).all()
    assert not arrays._watch.is_alive()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("where", ["reserving", "writing"])
def test_a_full_or_broken_disk_is_said(tmp_path, monkeypatch, code, where):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    if where == "reserving":
        monkeypatch.setattr(module, "_allocate", fail)
    else:
        monkeypatch.setattr(os, "pwrite", fail)
    expected = rf"no room for 0.1 GB of temporary arrays \({os.strerror(code)}\). Fix: "
    with pytest.raises(StorageFailed, match=expected) as caught:
        ScratchFiles(tmp_path / "out").keep(torch.ones(3))
    assert str(caught.value).startswith(str(tmp_path / "out"))


@pytest.mark.parametrize("n_bytes", [1, 2**20, 2**20 + 5])
def test_bytes_are_reserved_where_the_system_cannot(tmp_path, monkeypatch, n_bytes):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        module._allocate(file.fileno(), n_bytes)
    assert (tmp_path / "file").stat().st_size == n_bytes
