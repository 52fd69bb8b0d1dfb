"""The Typer application, and what every command shares: errors to exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from stflow_graph.errors import StflowError
from stflow_graph.version import __version__

from . import (
    convert,
    download,
    embed,
    encoders,
    evaluate,
    export,
    genes,
    prepare,
    probe,
    sample,
    simulate,
    split,
    train,
)

_SEVERAL = (
    "--datasets",
    "--encoders",
    "--fold",
    "--folds",
    "--genes",
    "--group-column",
    "--include",
    "--set",
)

app = typer.Typer(
    name="stflow-graph",
    help="Spatial gene expression from H&E slides: simulate, prepare, split, genes, embed, train, "
    "sample, eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # STFlow's own scripts spell options with underscores; both spellings work here
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
app.command("download")(download.download)
app.command("simulate")(simulate.simulate)
app.command("prepare")(prepare.prepare)
app.command("split")(split.split)
app.command("genes")(genes.genes)
app.command("embed")(embed.embed)
app.command("encoders")(encoders.encoders)
app.command("probe")(probe.probe)
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("export")(export.export)
app.command("convert")(convert.convert)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"stflow-graph {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Spatial gene expression from H&E slides by flow matching on a graph of spots."""
    del version, debug  # --debug is read in main(), where the error arrives
    handler = RichHandler(
        console=Console(stderr=True), show_time=False, show_path=False, show_level=True
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    # of a broken file our own error speaks, once
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option that takes several values before each of them, as the parser wants it.

    ``--datasets IDC PRAD`` (STFlow's spelling) becomes ``--datasets IDC --datasets PRAD``.
    """
    spread_out: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument.replace("_", "-") in _SEVERAL else None
            values = 0
        elif option is not None:
            values += 1
            if values > 1:
                spread_out.append(option)
        spread_out.append(argument)
    return spread_out


def _terminated(signum: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(signum, signal.SIG_DFL)  # a second signal ends at once
    raise SystemExit(128 + signum)


def main() -> None:
    """Run the command line and exit with the code of ``stflow_graph.errors``."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is understood wherever it stands, as people append it to a command that failed
    arguments = spread([argument for argument in arguments if argument != "--debug"])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(args=arguments, prog_name="stflow-graph")
    except StflowError as error:
        _fail(error, str(error), error.exit_code, debug)
    except BrokenPipeError:
        # the reader of our output left; keep the interpreter from complaining at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _fail(None, "interrupted", 130, debug=False)
    except MemoryError as error:
        _fail(error, "out of memory; use fewer spots, a smaller batch or more memory", 75, debug)
    except RuntimeError as error:
        # torch's two kinds, told apart without importing torch
        if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):
            raise
        _fail(error, "out of memory; use fewer spots, a smaller batch or more memory", 75, debug)
    except OSError as error:
        _fail(error, f"{error.filename or 'I/O'}: {error.strerror or error}", 74, debug)


def _fail(error: BaseException | None, message: str, code: int, debug: bool) -> None:
    if debug and error is not None:
        raise error
    line = " ".join(message.split("\n"))
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
