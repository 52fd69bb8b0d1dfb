"""A command's paths, checked before it imports libraries that take seconds to load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_Path = str | Path | None


def check_paths(
    *files: _Path,
    folder: _Path = None,
    file: _Path = None,
    roots: Sequence[_Path] = (),
    model: _Path = None,
    slides: Sequence[_Path] = (),
) -> None:
    """Refuse paths that are not there, and outputs that cannot be written.

    Args:
        files: inputs, files or folders; None stands for an option that is left out.
        folder: of the outputs.
        file: the output, where it is one.
        roots: folders of data sets or of embeddings.
        model: run, fold or checkpoint folder.
        slides: inputs of which some may be missing, as these are reported with the others' results.

    Raises:
        BadInput: names the first path at fault.
    """
    from stflow_graph.errors import BadInput, unquoted
    from stflow_graph.io.outputs import check_output_file, check_output_folder

    if folder is not None:
        check_output_folder(folder)
    if file is not None:
        check_output_file(file)
    for path in roots:
        if path and not Path(path).is_dir():
            raise BadInput(
                path, "root", unquoted("no folder"), "a folder of data sets or a data set"
            )
    if model is not None and not Path(model).exists():
        expected, fix = "a run or checkpoint folder", "give what `stflow-graph train --out` wrote"
        raise BadInput(model, "checkpoint", unquoted("none"), expected, fix)
    for path in files:
        if path:
            _check_input(Path(path))
    some = [Path(path) for path in slides if path]
    if some and not any(path.exists() for path in some):
        _check_input(some[0])


def _check_input(path: Path) -> None:
    from stflow_graph.io.atomic import check_file

    if not path.is_dir():
        check_file(path)
