"""TensorBoard logs where TensorBoard is installed and works."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stflow_graph.errors import StflowError, one_line
from stflow_graph.io.atomic import as_storage_error

if TYPE_CHECKING:
    from stflow_graph.training.loop import EpochRecord

_STATE = "Logs may end early; the command given again resumes the run"

logger = logging.getLogger(__name__)


class Trackers:
    """Writes every epoch's record, one log per member; a no-op without TensorBoard.

    TensorBoard breaks in many ways (its own modules missing, versions of protobuf or NumPy that it
    does not fit, ...). None of them is worth a training: logs end with one warning.

    Args:
        folder: of the logs; member m's are in ``member<m>``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Any] = {}
        self._works = find_spec("tensorboard") is not None
        if not self._works:
            logger.info("no TensorBoard logs: install the extra [tracking]")

    def log(self, member: int, record: EpochRecord) -> None:
        """Write one epoch of a member.

        Raises:
            StorageFailed: the disk is full or broken.
        """
        if not self._works:
            return
        try:
            writer = self._writer(member)
            with as_storage_error(self._folder, _STATE):
                writer.add_scalar("train/loss", record.loss, record.epoch)
                writer.add_scalar("validation/mse", record.validation_mse, record.epoch)
                writer.add_scalar("validation/pearson", record.validation_pearson, record.epoch)
        except StflowError:
            raise
        except Exception as error:
            self._works = False
            text = one_line(f"{type(error).__name__}: {error}", 300)
            logger.warning("no TensorBoard logs, training goes on: %s", text)

    def _writer(self, member: int) -> Any:
        if member not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[member] = SummaryWriter(str(self._folder / f"member{member}"))
        return self._writers[member]

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
            self._writers.clear()
            threading.excepthook = threading.__excepthook__


def _excepthook(hooked: threading.ExceptHookArgs) -> None:
    """Keep TensorBoard's threads from printing an error that its next call raises."""
    if type(hooked.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(hooked)
