"""The live table of ``stflow-graph train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from stflow_graph.config import Config
    from stflow_graph.stages.train import FoldResult, Progress


class TrainDisplay:
    """Shows one row a fold while training, and the scores at the end."""

    def __init__(self, config: Config) -> None:
        self._console = Console()
        self._config = config
        self._rows: dict[tuple[str, int], Progress] = {}
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> TrainDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, progress: Progress) -> None:
        """Show an epoch."""
        self._rows[progress.dataset, progress.fold] = progress
        if self._console.is_terminal:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        title = f"training the {self._config.denoiser.name} denoiser"
        columns = ["data set", "fold", "member", "epoch", "loss", "val PCC", "best", "s/epoch"]
        table = Table(*columns, title=title)
        for (dataset, fold), progress in self._rows.items():
            e, most = progress.epoch, self._config.train.epochs
            table.add_row(
                dataset,
                str(fold),
                str(progress.member),
                f"{e.epoch}/{most}",
                f"{e.loss:.4f}",
                f"{e.validation_pearson:.3f}",
                f"{e.best_pearson:.3f} @ {e.best_epoch}",
                f"{e.seconds:.1f}",
            )
        return table

    def summary(self, results: Sequence[FoldResult], out: Path) -> None:
        """Print each fold's scores and the next command."""
        from stflow_graph.data.splits import embedding_path
        from stflow_graph.stats.metrics import mean_of_defined

        columns = ["data set", "fold", "best epochs", "val PCC", "test slides", "test PCC", ""]
        table = Table(*columns, title=f"{self._config.denoiser.name} denoiser, {out}")
        for r in results:
            table.add_row(
                r.dataset,
                str(r.fold),
                ", ".join(str(record.epoch) for record in r.best),
                f"{r.validation_pearson:.3f}",
                ", ".join(r.test_pearson),
                f"{mean_of_defined(r.pearson):.3f}",
                "complete before" if r.up_to_date else "",
            )
        self._console.print(table)
        for protocol in dict.fromkeys(r.protocol for r in results):
            self._console.print(f"protocol: {protocol}", soft_wrap=True, markup=False)
        data = self._config.data
        dataset = results[0].dataset
        embeddings = embedding_path(data.embed_dataroot, dataset, data.encoder, "x").parent
        files = embeddings if embeddings.is_dir() else "EMB.h5 [...]"
        self._console.print(
            f"next: stflow-graph sample {out} {files} --out {out / 'predictions'}",
            style="dim",
            soft_wrap=True,
        )
