"""``stflow-graph prepare --grid``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from .progress import spot_progress


def grid_of(image: Path, out: Path, name: str, options: dict[str, Any]) -> None:
    """Cut a slide without spots on a grid, and print what was found and what to do next."""
    from stflow_graph.stages.tissue_grid import prepare_grid

    console = Console()
    with spot_progress() as progress:
        done = prepare_grid(image, out, name=name, progress=progress, **options)
    state = "is there already" if done.up_to_date else "written"
    source = "metadata" if options["um_per_px"] is None else "as given"
    for line in (
        f"{name}: {done.um_per_px:.4g} µm/px ({source}), tissue on {done.tissue:.0%} of the slide",
        f"{name}: {done.n_patches} patches of a grid of {done.n_rows} x {done.n_columns}: "
        f"{done.patches} {state}",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    embeddings = out.parent / "embeddings" / f"{name}.h5"
    for line in (
        f"next: stflow-graph embed {done.patches} --out {embeddings}",
        f"then: stflow-graph sample RUN {embeddings} --out {out.parent / 'predictions'}",
    ):
        console.print(line, style="dim", soft_wrap=True, markup=False)
