"""TensorBoard logs where TensorBoard is installed."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stflow_graph.fit import EpochRecord

logger = logging.getLogger(__name__)


class Tracker:
    """Writes every epoch's record; does nothing, and says so, without TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("no TensorBoard logs: install the extra [tracking]")
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder))

    def log(self, record: EpochRecord) -> None:
        """Write one epoch."""
        if self._writer is None:
            return
        self._writer.add_scalar("train/loss", record.loss, record.epoch)
        self._writer.add_scalar("validation/mse", record.validation_mse, record.epoch)
        self._writer.add_scalar("validation/pearson", record.validation_pearson, record.epoch)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
