"""The table that ``stflow-graph prepare`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from stflow_graph.stages.prepare import Prepared


def slide_table(slides: Sequence[Prepared], out: Path) -> Table:
    """Return a table of the spots kept and left out of each slide, and of its files."""
    root = escape(str(out))
    table = Table(title=f"{root}/patches/<slide>.h5 and {root}/adata/<slide>.h5ad")
    table.caption = "left out: not selected, no counts, no place; padded: patches over the edge"
    table.add_column("slide")
    for heading in ("spots", "not selected", "no counts", "no place", "padded", "pitch µm"):
        table.add_column(heading, justify="right")
    table.add_column("files")
    for slide in slides:
        left_out = (slide.not_selected, slide.only_in_spots, slide.only_in_counts)
        numbers = map(str, (slide.n_spots, *left_out, slide.n_padded))
        state = "there already" if slide.up_to_date else "written"
        table.add_row(slide.slide, *numbers, f"{slide.pitch_um:.1f}", state)
    return table
