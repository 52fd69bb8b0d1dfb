"""What ``stflow-graph encoders`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stflow_graph.encoders.entry import EncoderEntry


def encoder_table(entries: Sequence[EncoderEntry], weights_root: Path | None) -> Table:
    """Return a table of encoders, and where the weights of each were found."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="*: the page wants a licence accepted. More: stflow-graph encoders NAME",
        caption_justify="left",
    )
    table.add_column("encoder", no_wrap=True)
    table.add_column("width", justify="right", no_wrap=True)
    table.add_column("px", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("page")  # the only one that gives way on a narrow terminal
    for entry in entries:
        table.add_row(
            entry.name,
            str(entry.width),
            str(entry.transform.size),
            entry.licence + (" *" if entry.gated else ""),
            _state(entry, weights_root),
            Text(
                entry.hub or entry.page.removeprefix("https://"),
                style=f"link {entry.page}",
                no_wrap=True,
                overflow="ellipsis",
            ),
        )
    return table


def encoder_card(entry: EncoderEntry, weights_root: Path | None) -> Table:
    """Return all that is known of one encoder, and where its weights are or belong."""
    from stflow_graph.encoders.weights_file import find_weights

    found = find_weights(entry, weights_root)
    place = entry.place("DIR" if weights_root is None else weights_root)
    mean, std = (
        " ".join(f"{v:.6g}" for v in x) for x in (entry.transform.mean, entry.transform.std)
    )
    rows = {
        "encoder": entry.name + (f" (also {', '.join(entry.aliases)})" if entry.aliases else ""),
        "width": str(entry.width),
        "input": f"{entry.transform.describe()}, mean {mean}, std {std}",
        "licence": entry.licence + (" (to be accepted on the page)" if entry.gated else ""),
        "page": entry.page,
        "weights": f"{found.path} ({found.origin})" if found else "not found",
        "place": f"{place}, for --weights-root {'DIR' if weights_root is None else weights_root}",
    }
    card = Table.grid(padding=(0, 2))
    for key, value in rows.items():
        card.add_row(Text(key, style="dim"), Text(value, overflow="fold"))
    return card


def _state(entry: EncoderEntry, weights_root: Path | None) -> Text:
    from stflow_graph.encoders.weights_file import find_weights

    found = find_weights(entry, weights_root)
    return Text("-", style="dim") if found is None else Text(found.origin, style="green")
