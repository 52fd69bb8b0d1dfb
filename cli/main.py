"""The Typer application, and what every command shares: exit codes, lists, logging."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from stflow_graph.errors import (
    OF_A_PATH,
    BadInput,
    OutOfMemory,
    SomeFailed,
    StflowError,
    StorageFailed,
    is_out_of_memory,
    one_line,
)
from stflow_graph.parallel.ranks import RankFailed, join
from stflow_graph.version import __version__

from . import options as opt
from .convert import convert
from .display import is_quiet, json_mode
from .doctor import doctor
from .download import download
from .embed import embed
from .encoders import encoders
from .evaluate import evaluate
from .export import export
from .genes import genes
from .predict import predict
from .prepare import prepare
from .probe import probe
from .sample import sample
from .signals import command_of, handle_signals
from .simulate import simulate
from .split import split
from .summarise import summarise
from .train import train

app = typer.Typer(
    name="stflow-graph",
    help="Spatial gene expression from H&E slides: predict with a model, or prepare, split, "
    "genes, embed, train, sample and eval for one of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: the boxed one cuts long names at 80 columns
    pretty_exceptions_enable=False,
    # STFlow's own scripts spell options with underscores; both spellings work here
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
_BEFORE_EVAL: tuple[Callable[..., None], ...] = (
    predict,
    download,
    simulate,
    prepare,
    split,
    genes,
    embed,
    encoders,
    probe,
    train,
    sample,
)
_AFTER_EVAL: tuple[Callable[..., None], ...] = (
    summarise,
    export,
    convert,
    doctor,
)
# ranks of torchrun share their slides, or folds and members
_BY_RANKS = (predict, embed, train, sample)
for command in _BEFORE_EVAL:
    app.command()(opt.with_json(opt.with_ranks(command) if command in _BY_RANKS else command))
app.command("eval")(opt.with_json(evaluate))
for command in _AFTER_EVAL:
    app.command()(opt.with_json(command))
_PROGRAM = "stflow-graph"
# both are accepted at any position, as users append them to a command
_DEBUG, _JSON = "--debug", "--json"
# of every wrong use; typer does not export it
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
_OF_THE_PROGRAM = 1  # exit code of an uncaught error in Python


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
    as_json: opt.Json = False,
) -> None:
    """Spatial gene expression from H&E slides by flow matching on a graph of spots."""
    del version, debug, as_json  # main() reads the last two, as it handles errors and output
    handler = RichHandler(
        console=Console(stderr=True), show_time=False, show_path=False, show_level=True
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    # our own error reports a broken file, once
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@functools.cache
def _list_options() -> frozenset[str]:
    """Return the options of any command that take several values."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parameters = [parameter for c in group.commands.values() for parameter in c.params]
    return frozenset(name for p in parameters if getattr(p, "multiple", False) for name in p.opts)


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option before each of its values, as the parser requires.

    ``--datasets IDC PRAD`` (STFlow's spelling) becomes ``--datasets IDC --datasets PRAD``.
    """
    result: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument.replace("_", "-") in _list_options() else None
            n_values = 0
        elif option is not None:
            n_values += 1
            if n_values > 1:
                result.append(option)
        result.append(argument)
    return result


def _escape_what_cannot_be_encoded() -> None:
    """Let output with other characters than the terminal's, such as a path's, not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and embedders have others, or none
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line and exit with the code of ``stflow_graph.errors``."""
    debug = _DEBUG in sys.argv
    arguments = spread([word for word in sys.argv[1:] if word not in (_DEBUG, _JSON)])
    _escape_what_cannot_be_encoded()
    handle_signals(arguments)
    try:
        if _JSON in sys.argv:
            _run_with_json(arguments, debug)
        else:
            app(args=arguments, prog_name=_PROGRAM)
    except BrokenPipeError:
        # the reader of our output is gone; keep the interpreter from complaining at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        message, code = _message_and_code(error)
        if debug or code is None:
            raise
        if _is_told_by_another(message):
            sys.exit(code)
        first, *others = getattr(error, "lines", ()) or [one_line(message)]
        print("\n  ".join([f"error: {first}", *others]), file=sys.stderr)
        sys.exit(code)


def _is_told_by_another(message: str) -> bool:
    """Return whether the first of several ranks reports the same error; tell the others of it."""
    try:
        ranks = join()
    except RankFailed:
        return False
    if ranks is None or ranks.is_told_by_first(message):
        return ranks is not None
    ranks.tell_failure(message)
    return False


def _run_with_json(arguments: Sequence[str], debug: bool) -> None:
    """Run a command and print its document, also where it fails.

    Raises:
        SystemExit: the command ended.
        Exception: what it raised, other than of its usage.
    """
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    name, failure = command_of(arguments), None
    with json_mode(name if name in group.commands else None) as document:
        try:
            code = group.main(args=list(arguments), prog_name=_PROGRAM, standalone_mode=False) or 0
            raised: BaseException = SystemExit(code)
            if code:
                failure = {"message": document.failure, "exit_code": code}
        except BaseException as error:
            failure, raised = _failure(error, debug), error
            if isinstance(error, _USAGE_ERROR):
                error.show()  # type: ignore[attr-defined]
                raised = SystemExit(failure["exit_code"])
    if not is_quiet():
        print(document.text(failure), flush=True)
    raise raised


def _failure(error: BaseException, debug: bool) -> dict[str, Any]:
    """Return what a document has on an error: message, exit code, the slides that failed."""
    if not isinstance(error, Exception):  # by a signal
        code = getattr(error, "code", _OF_THE_PROGRAM)
        return {"message": "interrupted", "exit_code": code}
    if isinstance(error, _USAGE_ERROR):
        text = error.format_message()  # type: ignore[attr-defined]
        return {"message": one_line(text), "exit_code": error.exit_code}  # type: ignore[attr-defined]
    message, expected = _message_and_code(error)
    if expected is None:
        message = f"{type(error).__name__}: {error}"
    code = _OF_THE_PROGRAM if debug or expected is None else expected
    failure = {"message": one_line(message), "exit_code": code}
    if isinstance(error, SomeFailed):
        failure |= {"failed": [{"slide": slide, "message": text} for slide, text in error.failed]}
    return failure


def _message_and_code(error: Exception) -> tuple[str, int | None]:
    """Return the line for the user and the exit code; None for an error of the program."""
    if isinstance(error, StflowError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        fix = "use fewer spots, a smaller batch or more memory"
        return f"out of memory; {fix}", OutOfMemory.exit_code
    if isinstance(error, OSError):
        code = BadInput.exit_code if error.errno in OF_A_PATH else StorageFailed.exit_code
        return f"{error.filename or 'I/O'}: {error.strerror or error}", code
    return "", None
