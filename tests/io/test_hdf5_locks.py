"""HDF5 files on a file system without locks, and files that another program writes."""

from __future__ import annotations

import errno
import os

import h5py
import pytest
from toy import GENES, write_slide

from stflow_graph.errors import BadInput
from stflow_graph.io.embeddings import open_embeddings
from stflow_graph.io.expression import read_expression


@pytest.fixture
def locks_fail(monkeypatch):
    """Make HDF5 fail to lock files that it opens by their names, as on such a file system."""
    opened = h5py.File.__init__

    def install(number: int) -> None:
        def init(self, name, mode="r", **options):
            if isinstance(name, str | os.PathLike) and options.get("locking") is not False:
                text = f"Unable to open file (unable to lock file, errno = {number}, error mes"
                raise OSError(number, text)
            opened(self, name, mode, **options)

        monkeypatch.setattr(h5py.File, "__init__", init)

    return install


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_files_are_read_where_there_are_no_locks(tmp_path, locks_fail, number):
    files = tmp_path / "A.h5", tmp_path / "A.h5ad"
    write_slide(*files, 9, seed=0)
    with open_embeddings(files[0]) as source:
        expected = source.read()
    counts = read_expression(files[1]).counts.toarray()
    locks_fail(number)
    with open_embeddings(files[0]) as source:
        assert (source.read() == expected).all()
    read = read_expression(files[1])
    assert (read.genes, (read.counts.toarray() == counts).all()) == (GENES, True)


def test_a_file_that_another_program_writes_is_refused(tmp_path, locks_fail):
    write_slide(tmp_path / "A.h5", None, 9, seed=0)
    locks_fail(errno.EAGAIN)
    with pytest.raises(BadInput, match=r"found a lock, .*nobody is writing.*HDF5_USE_FILE"):
        open_embeddings(tmp_path / "A.h5").__enter__()
