"""TensorBoard logs where TensorBoard is installed."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stflow_graph.io.atomic import as_storage_error

if TYPE_CHECKING:
    from stflow_graph.training.loop import EpochRecord

_STATE = "Logs may end early; the command given again resumes the run"

logger = logging.getLogger(__name__)


class Trackers:
    """Writes every epoch's record, one log per member; a no-op without TensorBoard.

    Args:
        folder: of the logs; member m's are in ``member<m>``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Any] = {}
        self._found = find_spec("tensorboard") is not None
        if not self._found:
            logger.info("no TensorBoard logs: install the extra [tracking]")

    def log(self, member: int, record: EpochRecord) -> None:
        """Write one epoch of a member.

        Raises:
            StorageFailed: the disk is full or broken.
        """
        if not self._found:
            return
        with as_storage_error(self._folder, _STATE):
            if member not in self._writers:
                from torch.utils.tensorboard import SummaryWriter

                self._writers[member] = SummaryWriter(str(self._folder / f"member{member}"))
            writer = self._writers[member]
            writer.add_scalar("train/loss", record.loss, record.epoch)
            writer.add_scalar("validation/mse", record.validation_mse, record.epoch)
            writer.add_scalar("validation/pearson", record.validation_pearson, record.epoch)

    def __enter__(self) -> Trackers:
        threading.excepthook = _excepthook
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with as_storage_error(self._folder, _STATE):
                for writer in self._writers.values():
                    writer.close()
        finally:
            threading.excepthook = threading.__excepthook__


def _excepthook(hooked: threading.ExceptHookArgs) -> None:
    """Keep TensorBoard's threads from printing an error that its next call raises."""
    if type(hooked.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(hooked)
