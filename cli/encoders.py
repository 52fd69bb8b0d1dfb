"""``stflow-graph encoders``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Group
from rich.text import Text
from typer import Argument

from . import options as opt
from .display import add_result, console, show, table

if TYPE_CHECKING:
    from stflow_graph.encoders.entry import EncoderEntry

_WIDE = 120


def encoders(
    name: Annotated[str | None, Argument(help="Encoder to describe in full.")] = None,
    weights_root: opt.WeightsRoot = None,
) -> None:
    """List patch encoders, their licences and available weights."""
    from stflow_graph.encoders.catalogue import ENCODERS, entry_of

    chosen = ENCODERS.values() if name is None else [entry_of(name)]
    for entry in chosen:
        add_result(_record(entry, weights_root))
    if name is None:
        show(_encoder_table(chosen, weights_root))
    else:
        for key, value in _details(entry_of(name), weights_root).items():
            show(f"{key:<9}{value}")


def _record(entry: EncoderEntry, weights_root: Path | None) -> dict[str, object]:
    from stflow_graph.encoders.weights_file import find_weights

    weights = find_weights(entry, weights_root)
    names = ("name", "aliases", "width", "licence", "gated", "page", "hub", "base")
    return {
        **{name: getattr(entry, name) for name in names},
        "input_px": entry.transform.size,
        "weights": None if weights is None else {"path": weights.path, "origin": weights.origin},
    }


def _encoder_table(entries: Iterable[EncoderEntry], weights_root: Path | None) -> Group:
    """Return one row per encoder; the page only where there is room for it."""
    from stflow_graph.encoders.weights_file import find_weights

    headings = ("encoder", "width", "px", "licence", "weights", "page")
    n_columns = len(headings) if console().width >= _WIDE else len(headings) - 1
    rows: list[list[str | Text]] = []
    for entry in entries:
        weights = find_weights(entry, weights_root)
        cells: list[str | Text] = [
            entry.name,
            str(entry.width),
            str(entry.transform.size),
            entry.licence + (" *" if entry.gated else ""),
            Text("-", "dim") if weights is None else Text(weights.origin, "green"),
            Text(entry.hub or entry.page.removeprefix("https://"), f"link {entry.page}"),
        ]
        rows.append(cells[:n_columns])
    note = "*: accept the licence on its page first. Details: stflow-graph encoders NAME"
    return table("", headings[:n_columns], rows, left=(0, 3, 4, 5), note=note)


def _details(entry: EncoderEntry, weights_root: Path | None) -> dict[str, str]:
    from stflow_graph.encoders.weights_file import find_weights

    weights = find_weights(entry, weights_root)
    root = "DIR" if weights_root is None else weights_root
    mean, std = (
        " ".join(f"{v:.6g}" for v in x) for x in (entry.transform.mean, entry.transform.std)
    )
    rows = {
        "encoder": entry.name + (f" (also {', '.join(entry.aliases)})" if entry.aliases else ""),
        "width": str(entry.width),
        "input": f"{entry.transform.describe()}, mean {mean}, std {std}",
        "licence": entry.licence + (" (to be accepted on the page)" if entry.gated else ""),
        "page": entry.page,
        "weights": f"{weights.path} ({weights.origin})" if weights else "not found",
        "place": f"{entry.place(root)}, for --weights-root {root}",
    }
    if entry.base is not None:
        rows["base"] = f"{entry.base}, whose weights are needed too"
    return rows
