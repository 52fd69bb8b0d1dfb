"""The command line in this process, as a user meets it: exit code, output, errors."""

from __future__ import annotations

import itertools
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from stflow_graph_cli.main import main


class Run(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line of standard error."""
        (line,) = self.err.splitlines()
        return line

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the first table below its headings."""
        lines = self.out.splitlines()
        rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
        width = len(lines[rule])  # all rows are padded to it
        rows = itertools.takewhile(lambda line: len(line) == width, lines[rule + 1 :])
        return [re.split(r" {2,}", row.strip()) for row in rows]


def refused(run: Run, code: int, *texts: str) -> None:
    """Check that a command ended with this code and one line that has these texts."""
    assert run.code == code, run
    assert run.error.startswith("error: "), run
    for text in texts:
        assert text in run.error, run


@pytest.fixture
def cli(monkeypatch, capsys) -> Iterator[Callable[..., Run]]:
    """Run a command line at a width of 200 columns, or of ``columns``."""

    def run(*arguments: object, columns: int = 200) -> Run:
        monkeypatch.setattr(sys, "argv", ["stflow-graph", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Run(int(caught.value.code or 0), out, err)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)
